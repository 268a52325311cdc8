/**
 * Copies what is marked from one node to another, from the main thread: several parts at once, in bounded memory, at
 * a bounded speed. What is not allocated, and what is zero, is zeroed on the target without being written.
 */
import { isZero, mapAnonymous, unmap } from '../native/memory.js';
import { allocationExtents, readsAsZeroes } from './allocation.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import { BlockFlag, BlockOp } from './engine.js';
import { EngineClient } from './engine-client.js';
import type { BlockNode } from './node.js';

/** Parts under way at once, and the bytes of the longest. */
const workers = 8;
const partBytesMax = 1 << 20;
/** What is looked at for zeroes at once. */
const pieceBytes = 65_536;
const closeTimeoutMs = 10_000;

export interface CopierOptions {
  readonly source: BlockNode;
  readonly target: BlockNode;
  readonly bitmap: DirtyBitmap;
  /** Nobody else writes the target: where it reads as zeroes before the first run, zeroes need not be written. */
  readonly ownsTarget?: boolean;
  /** Told of each part that was copied. Bytes. */
  readonly onCopied: (bytes: number) => void;
}

export class Copier {
  /** Bytes a second; 0: no limit. */
  speed = 0;
  readonly #options: CopierOptions;
  readonly #source: EngineClient;
  readonly #target: EngineClient;
  readonly #memory = mapAnonymous(workers * partBytesMax);
  /** Set where data was written: there the target may hold something else than zeroes. Empty: it may anywhere. */
  #wasCopied = new Uint8Array(0);
  #isPrepared = false;
  #next = 0;
  /** When the speed allows the next part. */
  #nextAtMs = 0;
  #stopped = false;

  constructor(options: CopierOptions) {
    this.#options = options;
    this.#source = new EngineClient(options.source);
    try {
      this.#target = new EngineClient(options.target);
    } catch (error) {
      void this.#source.close(closeTimeoutMs);
      unmap(this.#memory, workers * partBytesMax);
      throw error;
    }
  }

  /** Until nothing is marked, or `stop`. Throws the first error, with its part marked again. */
  async run(): Promise<void> {
    this.#stopped = false;
    await this.#prepare();
    const running = Array.from({ length: workers }, (_, worker) => this.#work(worker));
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
  drainSource(change: () => Promise<void>): Promise<void> {
    return this.#source.drained(change);
  }

  drainTarget(change: () => Promise<void>): Promise<void> {
    return this.#target.drained(change);
  }

  flush(): Promise<void> {
    return this.#target.request({ op: BlockOp.FLUSH, offset: 0, length: 0 });
  }

  /** Nothing runs any more. */
  async close(): Promise<void> {
    await Promise.all([this.#source.close(closeTimeoutMs), this.#target.close(closeTimeoutMs)]);
    unmap(this.#memory, workers * partBytesMax);
  }

  async #prepare(): Promise<void> {
    const { bitmap, ownsTarget = false } = this.#options;
    if (!this.#isPrepared && ownsTarget && (await readsAsZeroes(this.#target))) {
      this.#wasCopied = new Uint8Array(bitmap.bitCount);
    }
    this.#isPrepared = true;
  }

  async #work(worker: number): Promise<void> {
    const { bitmap, onCopied } = this.#options;
    const address = this.#memory + worker * partBytesMax;
    for (let part = this.#take(); part !== undefined; part = this.#take()) {
      const { first, count, offset, length } = part;
      try {
        await this.#waitForSpeed(length);
        await this.#copy(offset, length, address);
        onCopied(length);
      } catch (error) {
        bitmap.mark(offset, length);
        this.#stopped = true;
        throw error;
      } finally {
        for (let bit = first; bit < first + count; bit++) {
          bitmap.release(bit);
        }
      }
    }
  }

  /** The next marked part, as long as it fits. */
  #take(): { first: number; count: number; offset: number; length: number } | undefined {
    const { bitmap } = this.#options;
    if (this.#stopped) {
      return undefined;
    }
    let first = bitmap.next(this.#next);
    if (first < 0) {
      first = bitmap.next(0);
    }
    if (first < 0 || !bitmap.take(first)) {
      return undefined;
    }
    const countMax = Math.max(1, partBytesMax / bitmap.granularity);
    let count = 1;
    while (count < countMax && bitmap.take(first + count)) {
      count++;
    }
    this.#next = first + count;
    const offset = first * bitmap.granularity;
    return { first, count, offset, length: Math.min(count * bitmap.granularity, bitmap.size - offset) };
  }

  async #copy(offset: number, length: number, address: number): Promise<void> {
    let at = offset;
    for (const extent of await allocationExtents(this.#source, { offset, length })) {
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
    await this.#source.request({ op: BlockOp.READ, offset, length, address });
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
        await this.#target.request({ op: BlockOp.WRITE, ...run });
        this.#remember(run.offset, run.length);
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
      await this.#target.request({
        op: BlockOp.WRITE_ZEROES,
        flags: BlockFlag.MAY_UNMAP,
        offset,
        length,
      });
      return;
    }
    const zeroes = address ?? mapAnonymous(length);
    try {
      await this.#target.request({ op: BlockOp.WRITE, offset, length, address: zeroes });
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

  async #waitForSpeed(length: number): Promise<void> {
    if (this.speed === 0) {
      return;
    }
    const now = performance.now();
    const at = Math.max(now, this.#nextAtMs);
    this.#nextAtMs = at + (length / this.speed) * 1000;
    while (performance.now() < at && !this.#stopped) {
      await new Promise((wake) => setTimeout(wake, Math.min(100, Math.ceil(at - performance.now()))));
    }
  }
}
