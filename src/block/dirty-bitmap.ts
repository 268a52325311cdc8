// Hot file: synchronous, no allocation after construction, no throw.
/**
 * Which parts of a disk were written, in memory that all threads share: queue threads mark, the main thread takes.
 * A part is marked when its write has ended and before its front-end learns of that, so whoever finds nothing
 * marked while nothing is in flight has seen everything.
 */

/** Counters of marks; a bit has one, which it shares with others. A power of two. */
const counterWords = 4096;
const bitsPerWord = 32;

export interface DirtyBitmapShape {
  /** Bytes of the disk. */
  readonly size: number;
  /** Bytes for each bit, a power of two. */
  readonly granularity: number;
}

export interface DirtyBitmapSpec extends DirtyBitmapShape {
  readonly buffer: SharedArrayBuffer;
}

export class DirtyBitmap {
  readonly buffer: SharedArrayBuffer;
  readonly size: number;
  readonly granularity: number;
  readonly bitCount: number;
  readonly #marks: Int32Array;
  readonly #dirty: Int32Array;
  /** Parts that are being copied at the moment. */
  readonly #copying: Int32Array;

  constructor(shape: DirtyBitmapShape | DirtyBitmapSpec) {
    this.size = shape.size;
    this.granularity = shape.granularity;
    this.bitCount = Math.ceil(shape.size / shape.granularity);
    const words = Math.ceil(this.bitCount / bitsPerWord);
    this.buffer = 'buffer' in shape ? shape.buffer : new SharedArrayBuffer((counterWords + 2 * words) * 4);
    this.#marks = new Int32Array(this.buffer, 0, counterWords);
    this.#dirty = new Int32Array(this.buffer, counterWords * 4, words);
    this.#copying = new Int32Array(this.buffer, (counterWords + words) * 4, words);
  }

  /** How often parts of the range were marked: another number says that one was, maybe. */
  markCount(offset: number, length: number): number {
    const last = this.#lastBit(offset, length);
    let count = 0;
    for (let bit = Math.floor(offset / this.granularity); bit <= last; bit++) {
      count += Atomics.load(this.#marks, bit & (counterWords - 1));
    }
    return count;
  }

  mark(offset: number, length: number): void {
    const last = this.#lastBit(offset, length);
    for (let bit = Math.floor(offset / this.granularity); bit <= last; bit++) {
      Atomics.add(this.#marks, bit & (counterWords - 1), 1);
      Atomics.or(this.#dirty, bit >>> 5, 1 << (bit & 31));
    }
  }

  /** Whether a part of the range is marked or being copied: a copy of it is still to come, or under way. */
  isPending(offset: number, length: number): boolean {
    const last = this.#lastBit(offset, length);
    for (let bit = Math.floor(offset / this.granularity); bit <= last; bit++) {
      const mask = 1 << (bit & 31);
      // The mark first: taking it sets the other before it clears this one.
      const dirty = Atomics.load(this.#dirty, bit >>> 5);
      const copying = Atomics.load(this.#copying, bit >>> 5);
      if (((dirty | copying) & mask) !== 0) {
        return true;
      }
    }
    return false;
  }

  /** The first marked bit from `from` on that is not being copied, or -1. */
  next(from: number): number {
    for (let bit = from; bit < this.bitCount; bit++) {
      const word = Atomics.load(this.#dirty, bit >>> 5) & ~Atomics.load(this.#copying, bit >>> 5);
      if (word === 0) {
        bit |= 31;
      } else if ((word & (1 << (bit & 31))) !== 0) {
        return bit;
      }
    }
    return -1;
  }

  /** Takes a bit for copying, if it is marked and nobody copies it. */
  take(bit: number): boolean {
    const word = bit >>> 5;
    const mask = 1 << (bit & 31);
    if (bit >= this.bitCount || (Atomics.load(this.#dirty, word) & mask) === 0) {
      return false;
    }
    if ((Atomics.load(this.#copying, word) & mask) !== 0) {
      return false;
    }
    Atomics.or(this.#copying, word, mask);
    Atomics.and(this.#dirty, word, ~mask);
    return true;
  }

  /** The copy of a bit has ended. */
  release(bit: number): void {
    Atomics.and(this.#copying, bit >>> 5, ~(1 << (bit & 31)));
  }

  /** Bits that are marked or being copied. */
  count(): number {
    let count = 0;
    for (let word = 0; word < this.#dirty.length; word++) {
      let bits = Atomics.load(this.#dirty, word) | Atomics.load(this.#copying, word);
      for (; bits !== 0; bits &= bits - 1) {
        count++;
      }
    }
    return count;
  }

  #lastBit(offset: number, length: number): number {
    return Math.min(this.bitCount, Math.ceil((offset + length) / this.granularity)) - 1;
  }
}
