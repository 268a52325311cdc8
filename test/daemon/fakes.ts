/** Block nodes and exports that do nothing but tell what was asked of them. */
import { VduseError } from '../../src/base/errors.js';
import type { BlockNode, BlockNodeOptions } from '../../src/block/node.js';
import type { BlockExport, VduseBlkExportOptions } from '../../src/daemon/block-export.js';

export class FakeNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  readonly filename: string | undefined;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly detectZeroes;
  readonly features = { flush: true, discard: true, writeZeroes: true, writeZeroesMayUnmap: true };
  readonly limits = {
    requestAlignment: 512,
    physicalBlockSize: 512,
    optimalIoSize: 0,
    discardAlignment: 512,
  };
  readonly engine = { kind: 'null', readZeroes: false } as const;
  size = 1 << 20;
  readonly #log: string[];

  constructor(options: BlockNodeOptions, log: string[]) {
    this.nodeName = options.nodeName;
    this.driver = options.driver;
    this.filename = 'filename' in options ? options.filename : undefined;
    this.readOnly = options.readOnly ?? false;
    this.cacheDirect = options.cache?.direct ?? false;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.detectZeroes = options.detectZeroes ?? 'off';
    this.#log = log;
  }

  async resize(size: number): Promise<void> {
    this.#log.push(`resize ${this.nodeName} ${size}`);
    this.size = size;
  }

  async close(): Promise<void> {
    this.#log.push(`close node ${this.nodeName}`);
  }
}

export class FakeExport implements BlockExport {
  readonly id: string;
  readonly type = 'vduse-blk';
  readonly description = 'a fake';
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly options: VduseBlkExportOptions;
  readonly closed: Promise<void>;
  shuttingDown = false;
  /** A front-end uses it. */
  busy = false;
  /** What close() throws when it is asked to be hard. */
  closeError: Error | undefined;
  /** What close() waits for: requests in flight. */
  inFlight: Promise<void> = Promise.resolve();
  /** close() is done before the export has ended. */
  endsLate = false;
  /** Ends the export from outside, as a broken device does. */
  end!: () => void;
  readonly #log: string[];

  constructor(options: VduseBlkExportOptions, log: string[]) {
    this.id = options.id;
    this.node = options.node;
    this.writable = options.writable;
    const { onIoError: _told, ...asked } = options;
    this.options = asked;
    this.closed = new Promise((end) => {
      this.end = end;
    });
    this.#log = log;
  }

  resized(): void {
    this.#log.push(`resized ${this.id}`);
  }

  drained(change: () => Promise<void>): Promise<void> {
    return change();
  }

  async close({ hard }: { readonly hard: boolean }): Promise<void> {
    if (this.busy && !hard) {
      throw new VduseError('BUSY', `'${this.id}' is used`);
    }
    this.shuttingDown = true;
    if (this.closeError !== undefined) {
      throw this.closeError;
    }
    await this.inFlight;
    this.#log.push(`close export ${this.id}${hard ? ' hard' : ''}`);
    if (this.endsLate) {
      setTimeout(this.end, 20);
    } else {
      this.end();
    }
  }
}

/** The two factories of a daemon, and what was made with them. */
export class Fakes {
  readonly log: string[] = [];
  readonly nodes: FakeNode[] = [];
  readonly exports: FakeExport[] = [];
  /** What opening waits for. */
  opening: Promise<void> = Promise.resolve();
  openError: Error | undefined;
  createError: Error | undefined;

  readonly factories = {
    openBlockNode: async (options: BlockNodeOptions): Promise<BlockNode> => {
      await this.opening;
      if (this.openError !== undefined) {
        throw this.openError;
      }
      const node = new FakeNode(options, this.log);
      this.nodes.push(node);
      return node;
    },
    exportCreators: {
      'vduse-blk': async (options: VduseBlkExportOptions): Promise<BlockExport> => {
        await this.opening;
        if (this.createError !== undefined) {
          throw this.createError;
        }
        const blockExport = new FakeExport(options, this.log);
        this.exports.push(blockExport);
        return blockExport;
      },
    },
  };

  export(id: string): FakeExport {
    const found = this.exports.find((candidate) => candidate.id === id);
    if (found === undefined) {
      throw new Error(`no export ${id} was made`);
    }
    return found;
  }
}

/** A promise and what settles it. */
export function gate(): { readonly passed: Promise<void>; open(): void } {
  let open = (): void => undefined;
  const passed = new Promise<void>((settle) => {
    open = settle;
  });
  return { passed, open: () => open() };
}
