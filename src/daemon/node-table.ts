/** The block nodes of a daemon by name, and what uses them. */
import { VduseError } from '../base/errors.js';
import type { BlockNode, BlockNodeOptions } from '../block/node.js';
import { identifierHint, isIdentifier } from './identifier.js';

export interface NodeEntry {
  readonly node: BlockNode;
  readonly options: BlockNodeOptions;
}

/** QEMU: the length of a node name with its terminator. */
const NODE_NAME_BYTES = 32;

/** Sizes are counted in sectors (virtio 5.2.4); QEMU rounds a new size up as well. */
const SECTOR_BYTES = 512;

export class NodeTable {
  readonly #open: (options: BlockNodeOptions) => Promise<BlockNode>;
  readonly #entries = new Map<string, NodeEntry>();

  constructor(open: (options: BlockNodeOptions) => Promise<BlockNode>) {
    this.#open = open;
  }

  /** The newest first, as QEMU lists them. */
  get entries(): NodeEntry[] {
    return [...this.#entries.values()].reverse();
  }

  async add(options: BlockNodeOptions): Promise<BlockNode> {
    const { nodeName } = options;
    if (!isIdentifier(nodeName)) {
      throw new VduseError('INVALID_ARGUMENT', `Invalid node-name: '${nodeName}'`, { hint: identifierHint });
    }
    if (Buffer.byteLength(nodeName) >= NODE_NAME_BYTES) {
      throw new VduseError('INVALID_ARGUMENT', 'Node name too long', {
        hint: `at most ${NODE_NAME_BYTES - 1} bytes`,
      });
    }
    if (this.#entries.has(nodeName)) {
      throw new VduseError('ALREADY_EXISTS', `Duplicate nodes with node-name='${nodeName}'`);
    }
    const node = await this.#open(options);
    this.#entries.set(nodeName, { node, options });
    return node;
  }

  /** By the two names of QEMU's commands. There are no devices here, so `device` never finds anything. */
  find(names: { device?: string | undefined; nodeName?: string | undefined }): BlockNode {
    const { device = '', nodeName = '' } = names;
    const entry = device === '' ? this.#entries.get(nodeName) : undefined;
    if (entry === undefined) {
      throw new VduseError('NOT_FOUND', `Cannot find device='${device}' nor node-name='${nodeName}'`);
    }
    return entry.node;
  }

  /** Closes a node; `inUse` tells whether something still serves from it. */
  async delete(nodeName: string, inUse: (node: BlockNode) => boolean): Promise<void> {
    const entry = this.#entries.get(nodeName);
    if (entry === undefined) {
      throw new VduseError('NOT_FOUND', `Failed to find node with node-name='${nodeName}'`);
    }
    if (inUse(entry.node)) {
      throw new VduseError('BUSY', `Node ${nodeName} is in use`);
    }
    this.#entries.delete(nodeName);
    await entry.node.close();
  }

  /** Returns the size that the node has now. */
  async resize(node: BlockNode, size: number): Promise<number> {
    if (size < 0) {
      throw new VduseError('INVALID_ARGUMENT', "Parameter 'size' expects a >0 size");
    }
    if (node.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', 'Image is read-only');
    }
    await node.resize(Math.ceil(size / SECTOR_BYTES) * SECTOR_BYTES);
    return node.size;
  }
}
