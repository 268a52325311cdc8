// Hot file: synchronous, no allocation after construction, no throw.
/**
 * Requests in flight, a slot each, as arrays: nothing is allocated per request. The queue fills a slot and
 * submits it to the engine, which owns what the slot names until it completes it. Slots are taken last in,
 * first out, so that few pages of the tables are ever touched.
 */
import { giveArenaBack, type IovecArena, takeArena } from './iovec-arenas.js';

const iovecBytes = 16;
const two32 = 0x1_0000_0000;

export class RequestTable {
  readonly capacity: number;
  readonly segmentsMax: number;
  /** A BlockOp and BlockFlag bits. */
  readonly op: Uint8Array;
  readonly flags: Uint8Array;
  /** Bytes from the start of the node, and in all. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** Segments of the payload; the first one's address, so that a single one needs no iovec. */
  readonly segmentCount: Uint16Array;
  readonly firstAddress: Float64Array;
  /** The first entry still to transfer; short transfers advance it. */
  readonly #firstSegment: Uint16Array;
  readonly #free: Uint16Array;
  #freeCount: number;
  /** struct iovec[segmentsMax] for each slot. */
  readonly #arena: IovecArena;
  readonly #words: Uint32Array;

  constructor(capacity: number, segmentsMax: number) {
    this.capacity = capacity;
    this.segmentsMax = segmentsMax;
    this.op = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.offset = new Float64Array(capacity);
    this.length = new Float64Array(capacity);
    this.segmentCount = new Uint16Array(capacity);
    this.firstAddress = new Float64Array(capacity);
    this.#firstSegment = new Uint16Array(capacity);
    this.#free = new Uint16Array(capacity);
    for (let n = 0; n < capacity; n++) {
      this.#free[n] = capacity - 1 - n;
    }
    this.#freeCount = capacity;
    this.#arena = takeArena(capacity * segmentsMax * iovecBytes);
    this.#words = this.#arena.words;
  }

  get inFlight(): number {
    return this.capacity - this.#freeCount;
  }

  /** A free slot with no payload. There is one for every element of the queue. */
  take(): number {
    const slot = this.#free[--this.#freeCount];
    this.flags[slot] = 0;
    this.offset[slot] = 0;
    this.length[slot] = 0;
    this.segmentCount[slot] = 0;
    this.#firstSegment[slot] = 0;
    return slot;
  }

  release(slot: number): void {
    this.#free[this.#freeCount++] = slot;
  }

  /** Adds to the payload; what continues the segment before joins it. False: there is no room. */
  addSegment(slot: number, address: number, length: number): boolean {
    const count = this.segmentCount[slot];
    if (count > 0) {
      const last = this.#word(slot, count - 1);
      const words = this.#words;
      const lastAddress = words[last] + words[last + 1] * two32;
      const lastLength = words[last + 2];
      if (lastAddress + lastLength === address && lastLength + length < two32) {
        words[last + 2] = lastLength + length;
        this.length[slot] += length;
        return true;
      }
    } else {
      this.firstAddress[slot] = address;
    }
    if (count === this.segmentsMax) {
      return false;
    }
    this.#setSegment(this.#word(slot, count), address, length);
    this.segmentCount[slot] = count + 1;
    this.length[slot] += length;
    return true;
  }

  segmentAddress(slot: number, n: number): number {
    const word = this.#word(slot, n);
    return this.#words[word] + this.#words[word + 1] * two32;
  }

  segmentLength(slot: number, n: number): number {
    return this.#words[this.#word(slot, n) + 2];
  }

  /** The address of the slot's struct iovec array, of `segmentCount` entries. */
  iovecAddress(slot: number): number {
    return this.#arena.address + this.#word(slot, 0) * 4;
  }

  /** Drops the payload's first bytes after a short transfer: offset, length and segments move on together. */
  advance(slot: number, bytes: number): void {
    this.offset[slot] += bytes;
    this.length[slot] -= bytes;
    let left = bytes;
    while (left > 0) {
      const word = this.#word(slot, 0);
      const length = this.#words[word + 2];
      if (left < length) {
        this.#setSegment(word, this.segmentAddress(slot, 0) + left, length - left);
        break;
      }
      left -= length;
      this.#firstSegment[slot]++;
      this.segmentCount[slot]--;
    }
    if (this.segmentCount[slot] > 0) {
      this.firstAddress[slot] = this.segmentAddress(slot, 0);
    }
  }

  /** Gives the arena back. Nothing is in flight, and nobody uses the table afterwards. */
  close(): void {
    giveArenaBack(this.#arena);
  }

  #word(slot: number, n: number): number {
    return (slot * this.segmentsMax + this.#firstSegment[slot] + n) * 4;
  }

  #setSegment(word: number, address: number, length: number): void {
    const words = this.#words;
    // A Uint32Array keeps the low 32 bits of a number, which is cheaper than a remainder.
    words[word] = address;
    words[word + 1] = address / two32;
    words[word + 2] = length;
    words[word + 3] = 0;
  }
}
