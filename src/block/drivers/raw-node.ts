/** QEMU's raw: a disk without a format, or a part of one. */
import { VduseError } from '../../base/errors.js';
import type { EngineSpec } from '../engine.js';
import type {
  BlockFeatures,
  BlockNode,
  BlockNodeListener,
  ChildOpener,
  RawNodeOptions,
  ReopenedNode,
} from '../node.js';

const sectorBytes = 512;

const invalid = (message: string, hint?: string) => new VduseError('INVALID_ARGUMENT', message, { hint });

/** Throws what opening the child throws, and INVALID_ARGUMENT for a part that the child does not have. */
export async function openRawNode(options: RawNodeOptions, children: ChildOpener): Promise<BlockNode> {
  const child = await children.open('file', options.file);
  try {
    checkPart(options, child);
    return new RawNode(options, child);
  } catch (error) {
    await child.close();
    throw error;
  }
}

function checkPart({ offset = 0, size }: RawNodeOptions, child: BlockNode): void {
  if (offset > child.size) {
    throw invalid(`Offset (${offset}) cannot be greater than size of the containing file (${child.size})`);
  }
  if (size !== undefined && offset + size > child.size) {
    // QEMU's text has the two blanks.
    throw invalid(
      `The sum of offset (${offset}) and size (${size}) has to be smaller or equal to the  actual size of the containing file (${child.size})`,
    );
  }
  if (size !== undefined && size % sectorBytes !== 0) {
    throw invalid(`Specified size is not multiple of ${sectorBytes}`);
  }
  const { requestAlignment } = child.limits;
  if (offset % requestAlignment !== 0) {
    throw invalid(
      `offset ${offset} is not a multiple of ${requestAlignment}, and node '${child.nodeName}' takes no request that begins there`,
      'Choose an offset in whole blocks.',
    );
  }
}

class RawNode implements BlockNode {
  readonly driver = 'raw';
  readonly nodeName: string;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly child: BlockNode;
  readonly pinsChildSize: boolean;
  readonly #options: RawNodeOptions;

  constructor(options: RawNodeOptions, child: BlockNode) {
    this.nodeName = options.nodeName;
    this.readOnly = options.readOnly ?? false;
    this.cacheDirect = options.cache?.direct ?? false;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.child = child;
    this.pinsChildSize = options.offset !== undefined || options.size !== undefined;
    this.#options = options;
  }

  get filename(): string | undefined {
    return this.pinsChildSize ? undefined : this.child.filename;
  }

  get detectZeroes() {
    const own = this.#options.detectZeroes ?? 'off';
    return own === 'off' ? this.child.detectZeroes : own;
  }

  get features(): BlockFeatures {
    const { flush, discard, writeZeroes, writeZeroesMayUnmap } = this.child.features;
    const unmap = this.#options.discard === 'unmap';
    return {
      flush,
      writeZeroes,
      discard: discard && unmap,
      writeZeroesMayUnmap: writeZeroesMayUnmap && unmap,
    };
  }

  get limits() {
    return this.child.limits;
  }

  get size(): number {
    const { offset = 0, size } = this.#options;
    const behind = Math.max(0, this.child.size - offset);
    return Math.floor(Math.min(size ?? behind, behind) / sectorBytes) * sectorBytes;
  }

  get engine(): EngineSpec {
    const { offset = 0, discard } = this.#options;
    const ignoreDiscard = discard !== 'unmap';
    const child = this.child.engine;
    return offset === 0 && !ignoreDiscard ? child : { kind: 'raw', offset, ignoreDiscard, child };
  }

  async resize(size: number): Promise<void> {
    if (this.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', `cannot resize '${this.nodeName}': it is read-only`);
    }
    if (this.#options.size !== undefined) {
      throw new VduseError('NOT_SUPPORTED', 'Cannot resize fixed-size raw disks');
    }
    await this.child.resize(size + (this.#options.offset ?? 0));
  }

  watch(listener: BlockNodeListener): void {
    this.child.watch?.(listener);
  }

  async reopen(options: RawNodeOptions, children: ChildOpener): Promise<ReopenedNode> {
    const node = await openRawNode(options, children);
    return { node, commit: () => this.close(), abort: () => node.close() };
  }

  close(): Promise<void> {
    return this.child.close();
  }
}
