/** The exports of a daemon by id, from their creation to whatever ends them. */
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { BlockNode } from '../block/node.js';
import type { NamedThread } from '../device/queue-host.js';
import { type BlockExport, createExport, type ExportCreators, type ExportRequest } from './block-export.js';
import { identifierHint, isIdentifier } from './identifier.js';

export type ExportRemoveMode = 'safe' | 'hard';

export interface ExportTableOptions {
  readonly creators: ExportCreators;
  /** Called when an export is gone, whatever ended it. */
  readonly onDeleted: (id: string) => void;
  readonly logger: Logger;
}

interface ExportEntry {
  readonly blockExport: BlockExport;
  /** Its iothread objects. */
  readonly iothreads: readonly string[];
  /** Settles when the export has ended and is no longer in the table. */
  readonly gone: Promise<void>;
}

export class ExportTable {
  readonly #options: ExportTableOptions;
  readonly #entries = new Map<string, ExportEntry>();
  /** Nodes of exports that could not be closed: something may still read and write them. */
  readonly #heldNodes = new Set<BlockNode>();

  constructor(options: ExportTableOptions) {
    this.#options = options;
  }

  /** The newest first, as QEMU lists them. */
  get exports(): BlockExport[] {
    return [...this.#entries.values()].map((entry) => entry.blockExport).reverse();
  }

  find(id: string): BlockExport | undefined {
    return this.#entries.get(id)?.blockExport;
  }

  exportsOf(node: BlockNode): BlockExport[] {
    return this.exports.filter((blockExport) => blockExport.node === node);
  }

  usesNode(node: BlockNode): boolean {
    return this.#heldNodes.has(node) || this.exportsOf(node).length > 0;
  }

  usesIothread(id: string): boolean {
    return [...this.#entries.values()].some((entry) => entry.iothreads.includes(id));
  }

  /** Throws before it looks at anything else when the id can't be used. */
  checkId(id: string): void {
    if (!isIdentifier(id)) {
      throw new VduseError('INVALID_ARGUMENT', 'Invalid block export id', { hint: identifierHint });
    }
    if (this.#entries.has(id)) {
      throw new VduseError('ALREADY_EXISTS', `Block export id '${id}' is already in use`);
    }
  }

  /** `named`: the threads of the request's iothreads. */
  async add(
    request: ExportRequest,
    node: BlockNode,
    named: readonly NamedThread[] = [],
  ): Promise<BlockExport> {
    const { type, nodeName, writable = false, iothreads = [], ...rest } = request;
    if (writable && node.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', 'Cannot export read-only node as writable', {
        hint: `node '${nodeName}' is read-only: export it with writable=off`,
      });
    }
    const writer = this.exportsOf(node).find((other) => other.writable);
    if (writable && writer !== undefined) {
      // Two front-ends that do not know of each other destroy what is on the disk.
      throw new VduseError('BUSY', `node '${nodeName}' has a writable export already: '${writer.id}'`, {
        hint: 'Export it with writable=off, or delete the other export first.',
      });
    }
    const threads = named.length === 0 ? {} : { threads: named };
    const blockExport = await createExport(this.#options.creators, type, {
      ...rest,
      node,
      writable,
      ...threads,
    });
    const gone = blockExport.closed.then(() => this.#forget(blockExport));
    this.#entries.set(request.id, { blockExport, iothreads, gone });
    return blockExport;
  }

  /** The export has ended; one that ended by itself, as a broken device does, is taken down here. */
  async #forget(blockExport: BlockExport): Promise<void> {
    if (!blockExport.shuttingDown) {
      await this.#close(blockExport, { hard: true }).catch((error: unknown) => {
        this.#options.logger.error(`export ${blockExport.id}: ${errorMessage(error)}`);
      });
    }
    this.#entries.delete(blockExport.id);
    this.#options.onDeleted(blockExport.id);
  }

  async #close(blockExport: BlockExport, options: { hard: boolean }): Promise<void> {
    try {
      await blockExport.close(options);
    } catch (error) {
      if (blockExport.shuttingDown) {
        this.#heldNodes.add(blockExport.node);
      }
      throw error;
    }
  }

  /** What can be said at once about a deletion that may have to wait for its turn. */
  checkDeletable(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) {
      throw new VduseError('NOT_FOUND', `Export '${id}' is not found`);
    }
    if (entry.blockExport.shuttingDown) {
      throw new VduseError('BUSY', `Export '${id}' is already shutting down`);
    }
  }

  async delete(id: string, mode: ExportRemoveMode): Promise<void> {
    this.checkDeletable(id);
    const entry = this.#entries.get(id)!;
    try {
      await this.#close(entry.blockExport, { hard: mode === 'hard' });
    } catch (error) {
      if (error instanceof VduseError && error.code === 'BUSY') {
        throw new VduseError('BUSY', `export '${id}' still in use`, {
          cause: error,
          hint: "Use mode='hard' to force client disconnect",
        });
      }
      throw error;
    }
    await entry.gone;
  }

  /** Ends all exports, or all of one type, whoever uses them. Returns whether all of them ended. */
  async closeAll(type?: string): Promise<boolean> {
    const entries = [...this.#entries.values()].filter(
      ({ blockExport }) => type === undefined || blockExport.type === type,
    );
    const results = await Promise.all(
      entries.map(async ({ blockExport, gone }) => {
        try {
          await this.#close(blockExport, { hard: true });
          await gone;
          return true;
        } catch (error) {
          this.#options.logger.error(`export ${blockExport.id} did not end: ${errorMessage(error)}`);
          return false;
        }
      }),
    );
    return results.every((ended) => ended);
  }
}
