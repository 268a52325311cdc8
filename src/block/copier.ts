/**
 * Copies what is marked from one node to another, from the main thread: several parts at once, in bounded memory, at
 * a bounded speed. What is not allocated, and what is zero, is zeroed on the target without being written.
 */
import { errorMessage, SystemCallError, VduseError } from '../base/errors.js';
import { Errno } from '../native/errno.js';
import { isZero, mapAnonymous, unmap } from '../native/memory.js';
import { allocationExtents, readsAsZeroes } from './allocation.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import { BlockFlag, BlockOp } from './engine.js';
import { EngineClient, type EngineRequest } from './engine-client.js';
import type { BlockNode } from './node.js';

/** Parts under way at once, and the bytes of the longest; as many again for parts that somebody waits for. */
const workersMax = 8;
const urgentMax = 8;
const partBytesMax = 1 << 20;
const memoryBytes = (workersMax + urgentMax) * partBytesMax;
/** What is looked at for zeroes at once. */
const pieceBytes = 65_536;
const closeTimeoutMs = 10_000;

/** A copy failed: where, and with which errno. */
export class CopyError extends VduseError {
  /** `read`: the source; `write`: the target. */
  readonly operation: 'read' | 'write';
  readonly errno: number;

  constructor(operation: 'read' | 'write', cause: unknown) {
    super('SYSTEM_CALL', errorMessage(cause), { cause });
    this.name = 'CopyError';
    this.operation = operation;
    this.errno = cause instanceof SystemCallError ? cause.errno : Errno.EIO;
  }
}

export interface CopierOptions {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly bitmap: DirtyBitmap;
  /** Nobody else writes the target: where it reads as zeroes before the first run, zeroes need not be written. */
  readonly ownsTarget?: boolean;
  /** Parts under way at once, at most 8; 8 when absent. */
  readonly workers?: number;
  /** Told of each part that was copied. Bytes. */
  readonly onCopied: (bytes: number) => void;
}

interface Part {
  readonly first: number;
  readonly count: number;
  readonly offset: number;
  readonly length: number;
}

export class Copier {
  readonly #options: CopierOptions;
  readonly #source: EngineClient;
  readonly #target: EngineClient;
  readonly #memory = mapAnonymous(memoryBytes);
  /** Memory for parts that somebody waits for, by number, and who waits for some. */
  readonly #lanes: number[] = Array.from({ length: urgentMax }, (_, lane) => workersMax + lane);
  readonly #laneWaiters: ((lane: number) => void)[] = [];
  /** Told when a part's copy has ended, well or not. */
  #endListeners: (() => void)[] = [];
  /** Set where data was written: there the target may hold something else than zeroes. Empty: it may anywhere. */
  #wasCopied = new Uint8Array(0);
  #prepared: Promise<void> | undefined;
  #next = 0;
  /** When the speed allows the next part. */
  #nextAtMs = 0;
  #speed = 0;
  #stopped = false;
  /** Parts under way. */
  #active = 0;

  constructor(options: CopierOptions) {
    this.#options = options;
    this.#source = new EngineClient(options.source);
    try {
      this.#target = new EngineClient(options.target);
    } catch (error) {
      void this.#source.close(closeTimeoutMs);
      unmap(this.#memory, memoryBytes);
      throw error;
    }
  }

  /** Bytes a second; 0: no limit. */
  set speed(speed: number) {
    this.#speed = speed;
    this.#nextAtMs = 0;
  }

  /** Until nothing is marked, or `stop`. Throws the first error, a CopyError, with its part marked again. */
  async run(): Promise<void> {
    this.#stopped = false;
    await this.#prepare();
    const count = Math.min(workersMax, this.#options.workers ?? workersMax);
    const running = Array.from({ length: count }, (_, worker) => this.#work(worker));
    const results = await Promise.allSettled(running);
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
  }

  /** Ends `run` after the parts that are under way. */
  stop(): void {
    this.#stopped = true;
  }

  /** Lets requests on the source end, and holds the next ones while what is below it changes. */
  drainSource(change: () => Promise<void>, timeoutMs: number): Promise<void> {
    return this.#source.drained(change, timeoutMs);
  }

  drainTarget(change: () => Promise<void>, timeoutMs: number): Promise<void> {
    return this.#target.drained(change, timeoutMs);
  }

  flush(): Promise<void> {
    return this.#write({ op: BlockOp.FLUSH, offset: 0, length: 0 });
  }

  /**
   * Nothing runs any more. `onSourceClosed` and `onTargetClosed` come when the node is not used any more. Throws TIMEOUT
   * where requests on one did not end; then the memory stays.
   */
  async close(
    onSourceClosed: () => Promise<void> = async () => undefined,
    onTargetClosed: () => Promise<void> = async () => undefined,
  ): Promise<void> {
    const results = await Promise.allSettled([
      this.#source.close(closeTimeoutMs).then(onSourceClosed),
      this.#target.close(closeTimeoutMs).then(onTargetClosed),
    ]);
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
    if (this.#active === 0) {
      unmap(this.#memory, memoryBytes);
    }
  }

  /** Once, whoever copies first. */
  #prepare(): Promise<void> {
    const { bitmap, ownsTarget = false } = this.#options;
    const look = async (): Promise<void> => {
      // Where that can't be told, zeroes are written.
      if (ownsTarget && (await readsAsZeroes(this.#target).catch(() => false))) {
        this.#wasCopied = new Uint8Array(bitmap.bitCount);
      }
    };
    this.#prepared ??= look();
    return this.#prepared;
  }

  /**
   * Copies what is marked of some parts at once, whatever the speed and `stop` say, and waits for copies of them that
   * are under way. Throws the first error, with its part marked again.
   */
  async copyNow(first: number, count: number): Promise<void> {
    const { granularity } = this.#options.bitmap;
    const end = first + count;
    await this.#prepare();
    while (this.#options.bitmap.isPending(first * granularity, count * granularity)) {
      const isTaken = await this.#copyMarked(first, end);
      if (!isTaken && this.#options.bitmap.isPending(first * granularity, count * granularity)) {
        await new Promise<void>((report) => this.#endListeners.push(report));
      }
    }
  }

  /** Copies the marked parts among some, several at once. Returns whether there were any. */
  async #copyMarked(first: number, end: number): Promise<boolean> {
    let isTaken = false;
    let next = first;
    const work = async (): Promise<void> => {
      for (;;) {
        const lane = await this.#takeLane();
        try {
          const part = this.#takeFrom(next, end);
          if (part === undefined) {
            return;
          }
          isTaken = true;
          next = part.first + part.count;
          await this.#copyPart(part, this.#memory + lane * partBytesMax);
        } finally {
          this.#releaseLane(lane);
        }
      }
    };
    const partsMax = Math.ceil(((end - first) * this.#options.bitmap.granularity) / partBytesMax);
    const results = await Promise.allSettled(Array.from({ length: Math.min(urgentMax, partsMax) }, work));
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
    return isTaken;
  }

  #takeLane(): number | Promise<number> {
    return this.#lanes.pop() ?? new Promise((give) => this.#laneWaiters.push(give));
  }

  #releaseLane(lane: number): void {
    const waiter = this.#laneWaiters.shift();
    if (waiter === undefined) {
      this.#lanes.push(lane);
    } else {
      waiter(lane);
    }
  }

  async #work(worker: number): Promise<void> {
    const address = this.#memory + worker * partBytesMax;
    for (let part = await this.#take(); part !== undefined; part = await this.#take()) {
      try {
        await this.#copyPart(part, address);
      } catch (error) {
        this.#stopped = true;
        throw error;
      }
    }
  }

  async #copyPart({ first, count, offset, length }: Part, address: number): Promise<void> {
    const { bitmap, onCopied } = this.#options;
    this.#active++;
    try {
      await this.#copy(offset, length, address);
      onCopied(length);
    } catch (error) {
      bitmap.mark(offset, length);
      throw error;
    } finally {
      this.#active--;
      for (let bit = first; bit < first + count; bit++) {
        bitmap.release(bit);
      }
      const listeners = this.#endListeners;
      this.#endListeners = [];
      for (const listener of listeners) {
        listener();
      }
    }
  }

  /** The next marked part, as long as it fits, when the speed allows it. */
  async #take(): Promise<Part | undefined> {
    const { bitmap } = this.#options;
    while (this.#speed > 0 && performance.now() < this.#nextAtMs && !this.#stopped) {
      const ms = Math.ceil(this.#nextAtMs - performance.now());
      await new Promise((wake) => setTimeout(wake, Math.min(100, ms)));
    }
    if (this.#stopped) {
      return undefined;
    }
    const part = this.#takeFrom(this.#next, bitmap.bitCount) ?? this.#takeFrom(0, bitmap.bitCount);
    if (part !== undefined) {
      this.#next = part.first + part.count;
      if (this.#speed > 0) {
        this.#nextAtMs = performance.now() + (part.length / this.#speed) * 1000;
      }
    }
    return part;
  }

  #takeFrom(from: number, end: number): Part | undefined {
    const { bitmap } = this.#options;
    const first = bitmap.next(from);
    if (first < 0 || first >= end || !bitmap.take(first)) {
      return undefined;
    }
    const countMax = Math.min(end - first, Math.max(1, partBytesMax / bitmap.granularity));
    let count = 1;
    while (count < countMax && bitmap.take(first + count)) {
      count++;
    }
    const offset = first * bitmap.granularity;
    return { first, count, offset, length: Math.min(count * bitmap.granularity, bitmap.size - offset) };
  }

  async #copy(offset: number, length: number, address: number): Promise<void> {
    let at = offset;
    const alignment = this.#options.target.limits.requestAlignment;
    for (const extent of await allocationExtents(this.#source, { offset, length, alignment })) {
      await (extent.zero
        ? this.#zero(at, extent.length)
        : this.#copyData(at, extent.length, address + (at - offset)));
      at += extent.length;
    }
    if (at < offset + length) {
      await this.#copyData(at, offset + length - at, address + (at - offset));
    }
  }

  async #copyData(offset: number, length: number, address: number): Promise<void> {
    await this.#read({ op: BlockOp.READ, offset, length, address });
    for (let at = 0; at < length; ) {
      const zero = isZero(address + at, Math.min(pieceBytes, length - at));
      let end = at + pieceBytes;
      while (end < length && isZero(address + end, Math.min(pieceBytes, length - end)) === zero) {
        end += pieceBytes;
      }
      const run = { offset: offset + at, length: Math.min(end, length) - at, address: address + at };
      if (zero) {
        await this.#zero(run.offset, run.length, run.address);
      } else {
        // Before: a write that fails may have left a part of its data.
        this.#remember(run.offset, run.length);
        await this.#write({ op: BlockOp.WRITE, ...run });
      }
      at = end;
    }
  }

  /** `address`: memory that is zero, for targets that can't zero by themselves. */
  async #zero(offset: number, length: number, address?: number): Promise<void> {
    if (this.#isUntouched(offset, length)) {
      return;
    }
    if (this.#options.target.features.writeZeroes) {
      await this.#write({
        op: BlockOp.WRITE_ZEROES,
        flags: BlockFlag.MAY_UNMAP,
        offset,
        length,
      });
      return;
    }
    const zeroes = address ?? mapAnonymous(length);
    try {
      await this.#write({ op: BlockOp.WRITE, offset, length, address: zeroes });
    } finally {
      if (address === undefined) {
        unmap(zeroes, length);
      }
    }
  }

  #isUntouched(offset: number, length: number): boolean {
    const [first, end] = this.#bits(offset, length);
    return this.#wasCopied.length > 0 && this.#wasCopied.subarray(first, end).every((was) => was === 0);
  }

  #remember(offset: number, length: number): void {
    this.#wasCopied.fill(1, ...this.#bits(offset, length));
  }

  #bits(offset: number, length: number): [number, number] {
    const { granularity } = this.#options.bitmap;
    return [Math.floor(offset / granularity), Math.ceil((offset + length) / granularity)];
  }

  async #read(request: EngineRequest): Promise<void> {
    try {
      await this.#source.request(request);
    } catch (error) {
      throw new CopyError('read', error);
    }
  }

  async #write(request: EngineRequest): Promise<void> {
    try {
      await this.#target.request(request);
    } catch (error) {
      throw new CopyError('write', error);
    }
  }
}
