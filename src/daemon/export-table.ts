/** The exports of a daemon by id, from their creation to whatever ends them. */
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { BlockNode } from '../block/node.js';
import type { IoError, NamedThread } from '../device/queue-host.js';
import { type BlockExport, createExport, type ExportCreators, type ExportRequest } from './block-export.js';
import type { GraphNode, NodeLink, NodeUser } from './graph/graph-node.js';
import { allPermissions, Permission, type Permissions } from './graph/permissions.js';
import { identifierHint, isIdentifier } from './identifier.js';
import { unnamedUser } from './node-table.js';

export type ExportRemoveMode = 'safe' | 'hard';

export interface ExportTableOptions {
  readonly creators: ExportCreators;
  /** Called when an export is gone, whatever ended it. */
  readonly onDeleted: (id: string) => void;
  /** Called when requests of an export failed: at most once a second for each kind of operation. */
  readonly onIoError: (
    blockExport: { readonly id: string; readonly node: BlockNode },
    error: IoError,
  ) => void;
  readonly logger: Logger;
}

interface ExportEntry {
  readonly blockExport: BlockExport;
  readonly node: GraphNode;
  /** Its iothread objects. */
  readonly iothreads: readonly string[];
  /** Settles when the export has ended and is no longer in the table. */
  readonly gone: Promise<void>;
}

const errorEventMs = 1000;

/** Export types whose front-end is a kernel with a disk. */
const diskTypes: ReadonlySet<string> = new Set(['vduse-blk', 'vhost-user-blk']);

export class ExportTable {
  readonly #options: ExportTableOptions;
  readonly #entries = new Map<string, ExportEntry>();
  /** The ends that are under way. */
  readonly #closing = new Map<BlockExport, Promise<void>>();

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
    node: GraphNode,
    named: readonly NamedThread[] = [],
  ): Promise<BlockExport> {
    const { type, nodeName, writable = false, iothreads = [], ...rest } = request;
    if (writable && node.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', 'Cannot export read-only node as writable', {
        hint: `node '${nodeName}' is read-only: export it with writable=off`,
      });
    }
    if (writable) {
      this.#checkOnlyDisk(type, node);
    }
    const threads = named.length === 0 ? {} : { threads: named };
    const user = new ExportUser(type, writable);
    const link = node.attach(user);
    try {
      const onIoError = this.#errorListener({ id: request.id, node: link });
      const options = { ...rest, node: link, writable, onIoError, ...threads };
      const blockExport = await createExport(this.#options.creators, type, options);
      user.blockExport = blockExport;
      const gone = blockExport.closed.then(() => this.#forget(blockExport, link));
      this.#entries.set(request.id, { blockExport, node, iothreads, gone });
      return blockExport;
    } catch (error) {
      await link.close();
      throw error;
    }
  }

  /** However many queues and clients meet a broken disk, a monitor hears of it in time and not too often. */
  #errorListener(blockExport: { readonly id: string; readonly node: BlockNode }): (error: IoError) => void {
    const toldAtMs = { read: Number.NEGATIVE_INFINITY, write: Number.NEGATIVE_INFINITY };
    return (error) => {
      const now = performance.now();
      if (now - toldAtMs[error.operation] >= errorEventMs) {
        toldAtMs[error.operation] = now;
        this.#options.onIoError(blockExport, error);
      }
    };
  }

  /**
   * A kernel takes a disk for its own: two that write to one destroy what is on it. QEMU allows that, to be used by
   * those who know; NBD's clients may share, and do.
   */
  #checkOnlyDisk(type: string, node: GraphNode): void {
    const other = [...this.#entries.values()].find(
      ({ blockExport, node: itsNode }) =>
        itsNode === node && blockExport.writable && diskTypes.has(blockExport.type),
    );
    if (other !== undefined && diskTypes.has(type)) {
      const { id } = other.blockExport;
      throw new VduseError('BUSY', `node '${node.nodeName}' has a writable export already: '${id}'`, {
        hint: 'Export it with writable=off, or delete the other export first.',
      });
    }
  }

  /** The export has ended; one that ended by itself, as a broken device does, is taken down here. */
  async #forget(blockExport: BlockExport, link: NodeLink): Promise<void> {
    try {
      await (this.#closing.get(blockExport) ?? this.#close(blockExport, { hard: true }));
      await link.close();
    } catch (error) {
      // Something may still read and write the node: it stays in use.
      this.#options.logger.error(`export ${blockExport.id}: ${errorMessage(error)}`);
    }
    this.#closing.delete(blockExport);
    this.#entries.delete(blockExport.id);
    this.#options.onDeleted(blockExport.id);
  }

  async #close(blockExport: BlockExport, options: { hard: boolean }): Promise<void> {
    const closing = blockExport.close(options);
    this.#closing.set(blockExport, closing);
    try {
      await closing;
    } finally {
      if (!blockExport.shuttingDown) {
        this.#closing.delete(blockExport);
      }
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

/** An export as the user of its node. Clients of NBD do not learn of a new size, so nobody may change it. */
class ExportUser implements NodeUser {
  readonly description = unnamedUser.description;
  readonly role = unnamedUser.role;
  /** Absent while it is being made. */
  blockExport: BlockExport | undefined;
  readonly #permissions: Permissions;

  constructor(type: string, writable: boolean) {
    this.#permissions = {
      uses: Permission.CONSISTENT_READ | (writable ? Permission.WRITE : 0),
      shares: type === 'nbd' ? allPermissions & ~Permission.RESIZE : allPermissions,
    };
  }

  permissions(): Permissions {
    return this.#permissions;
  }

  resized(): void {
    this.blockExport?.resized();
  }

  drained(change: () => Promise<void>, timeoutMs: number): Promise<void> {
    return this.blockExport?.drained(change, timeoutMs) ?? change();
  }
}
