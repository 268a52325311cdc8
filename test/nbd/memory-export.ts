/**
 * A disk in shared memory behind the NBD server's interface. It lends its own memory for reads, takes payloads into
 * buffers that it counts, waits or fails when asked, and keeps a record of every call.
 */
import assert from 'node:assert/strict';
import type {
  NbdBlockSizes,
  NbdExport,
  NbdExtent,
  NbdPreparedWrite,
  NbdReadResult,
  NbdWriteOptions,
  NbdWriteZeroesOptions,
} from '../../src/nbd/nbd-export.js';

type OptionalCall = 'prepareWrite' | 'flush' | 'trim' | 'writeZeroes' | 'cache' | 'blockStatus';

export interface MemoryExportOptions {
  readonly size: number;
  readonly blockSizes?: Partial<NbdBlockSizes>;
  readonly fua?: boolean;
  readonly multiConn?: boolean;
  readonly fastZero?: boolean;
  /** Answers with promises, out of order, or at once. */
  readonly isAsync?: boolean;
  /** Abilities that it does not have. */
  readonly without?: readonly OptionalCall[];
  /** Keeps track of what is allocated, in blocks of this many bytes, and reads holes as zeroes. */
  readonly holeBytes?: number;
}

export interface ExportCall {
  readonly call: 'read' | OptionalCall;
  readonly offset: number;
  readonly length: number;
  readonly options?: NbdWriteOptions | NbdWriteZeroesOptions;
}

/** What fails with it carries the errno as system call errors do. */
export class ErrnoError extends Error {
  readonly errno: number;

  constructor(errno: number) {
    super(`errno ${errno}`);
    this.errno = errno;
  }
}

export class MemoryExport implements NbdExport {
  readonly bytes: Uint8Array;
  readonly blockSizes: NbdBlockSizes;
  readonly fua: boolean;
  readonly multiConn: boolean;
  readonly fastZero: boolean;
  readonly calls: ExportCall[] = [];
  /** Reads lent and given back, writes prepared and submitted or cancelled. */
  readonly counts = { lent: 0, released: 0, prepared: 0, submitted: 0, cancelled: 0 };
  /** Set, every call waits for it before it does anything. */
  gate: Promise<void> | undefined;
  /** Set, every call ends with it. */
  failure: Error | undefined;
  /** Set, fast write-zeroes are not possible. */
  isSlowToZero = false;
  readonly #isAsync: boolean;
  readonly #holes: Uint8Array | undefined;
  readonly #holeBytes: number;
  readonly prepareWrite?: NonNullable<NbdExport['prepareWrite']>;
  readonly flush?: NonNullable<NbdExport['flush']>;
  readonly trim?: NonNullable<NbdExport['trim']>;
  readonly writeZeroes?: NonNullable<NbdExport['writeZeroes']>;
  readonly cache?: NonNullable<NbdExport['cache']>;
  readonly blockStatus?: NonNullable<NbdExport['blockStatus']>;

  constructor(options: MemoryExportOptions) {
    this.bytes = new Uint8Array(new SharedArrayBuffer(options.size));
    this.blockSizes = { minimum: 1, preferred: 4096, maximum: 32 << 20, ...options.blockSizes };
    this.fua = options.fua ?? true;
    this.multiConn = options.multiConn ?? true;
    this.fastZero = options.fastZero ?? true;
    this.#isAsync = options.isAsync ?? false;
    this.#holeBytes = options.holeBytes ?? 0;
    this.#holes =
      this.#holeBytes === 0 ? undefined : new Uint8Array(Math.ceil(options.size / this.#holeBytes)).fill(1);
    const has = (call: OptionalCall): boolean => options.without?.includes(call) !== true;
    if (has('prepareWrite')) {
      this.prepareWrite = (offset, length, how) => this.#prepare(offset, length, how);
    }
    if (has('flush')) {
      this.flush = () => this.#run('flush', { offset: 0, length: 0 }, () => undefined);
    }
    if (has('trim')) {
      this.trim = (offset, length, how) =>
        this.#run('trim', { offset, length, options: how }, () => this.#punch(offset, length));
    }
    if (has('writeZeroes')) {
      this.writeZeroes = (offset, length, how) => this.#zero(offset, length, how);
    }
    if (has('cache')) {
      this.cache = (offset, length) => this.#run('cache', { offset, length }, () => undefined);
    }
    if (has('blockStatus')) {
      this.blockStatus = (offset, length) =>
        this.#run('blockStatus', { offset, length }, () => this.#extents(offset, length));
    }
  }

  get size(): number {
    return this.bytes.length;
  }

  count(call: ExportCall['call']): number {
    return this.calls.filter((one) => one.call === call).length;
  }

  /** Everything that was lent came back, exactly once. */
  assertBalanced(): void {
    const { lent, released, prepared, submitted, cancelled } = this.counts;
    assert.equal(released, lent, 'reads given back');
    assert.equal(submitted + cancelled, prepared, 'writes submitted or cancelled');
  }

  read(offset: number, length: number): NbdReadResult | Promise<NbdReadResult> {
    return this.#run('read', { offset, length }, () => {
      this.counts.lent += 1;
      let isOut = true;
      return {
        parts: this.#parts(offset, length),
        release: () => {
          assert.ok(isOut, 'a read is given back once');
          isOut = false;
          this.counts.released += 1;
        },
      };
    });
  }

  #prepare(offset: number, length: number, options: NbdWriteOptions) {
    return this.#run('prepareWrite', { offset, length, options }, (): NbdPreparedWrite => {
      this.counts.prepared += 1;
      const buffer = new Uint8Array(new SharedArrayBuffer(length));
      let isOut = true;
      const end = (how: 'submitted' | 'cancelled'): void => {
        assert.ok(isOut, 'a prepared write ends once');
        isOut = false;
        this.counts[how] += 1;
      };
      return {
        buffer,
        submit: () => {
          end('submitted');
          const store = (): void => {
            this.bytes.set(buffer, offset);
            this.#mark(offset, length, 0);
          };
          return this.#isAsync ? this.#pause().then(store) : store();
        },
        cancel: () => end('cancelled'),
      };
    });
  }

  #zero(offset: number, length: number, options: NbdWriteZeroesOptions) {
    return this.#run('writeZeroes', { offset, length, options }, () => {
      if (options.fastZero && this.isSlowToZero) {
        throw new ErrnoError(95);
      }
      this.bytes.fill(0, offset, offset + length);
      this.#mark(offset, length, 0);
      if (options.mayUnmap) {
        this.#punch(offset, length);
      }
    });
  }

  #run<T>(call: ExportCall['call'], what: Omit<ExportCall, 'call'>, act: () => T): T | Promise<T> {
    this.calls.push({ call, ...what });
    const { failure, gate } = this;
    const finish = (): T => {
      if (failure !== undefined) {
        throw failure;
      }
      return act();
    };
    if (gate !== undefined) {
      return gate.then(finish);
    }
    return this.#isAsync ? this.#pause().then(finish) : finish();
  }

  /** Different numbers of turns, so that requests overtake one another. */
  async #pause(): Promise<void> {
    for (let turns = this.calls.length % 3; turns > 0; turns--) {
      await new Promise<void>((resume) => setImmediate(resume));
    }
  }

  #parts(offset: number, length: number): (Uint8Array | { zeroes: number })[] {
    return this.#extents(offset, length).map((extent, n, all) => {
      const at = offset + all.slice(0, n).reduce((sum, one) => sum + one.length, 0);
      return extent.hole ? { zeroes: extent.length } : this.bytes.subarray(at, at + extent.length);
    });
  }

  #extents(offset: number, length: number): NbdExtent[] {
    const extents: NbdExtent[] = [];
    for (let at = offset; at < offset + length; ) {
      const block = this.#holes === undefined ? 0 : Math.floor(at / this.#holeBytes);
      const isHole = this.#holes?.[block] === 1;
      const end = this.#holes === undefined ? offset + length : (block + 1) * this.#holeBytes;
      const taken = Math.min(end, offset + length) - at;
      extents.push({ length: taken, hole: isHole, zero: isHole });
      at += taken;
    }
    return extents;
  }

  /** Whole blocks become holes, and read as zeroes. */
  #punch(offset: number, length: number): void {
    if (this.#holes === undefined) {
      return;
    }
    const first = Math.ceil(offset / this.#holeBytes);
    const end = Math.floor((offset + length) / this.#holeBytes);
    if (end > first) {
      this.#holes.fill(1, first, end);
      this.bytes.fill(0, first * this.#holeBytes, end * this.#holeBytes);
    }
  }

  #mark(offset: number, length: number, value: number): void {
    if (this.#holes !== undefined && length > 0) {
      const first = Math.floor(offset / this.#holeBytes);
      const end = Math.ceil((offset + length) / this.#holeBytes);
      this.#holes.fill(value, first, end);
    }
  }
}
