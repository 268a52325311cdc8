// Hot file: synchronous, no allocation per request, no throw.
/** Aligned copies of what guests read and write, for transfers whose own memory O_DIRECT refuses. */
import type { AlignedPool } from '../../memory/aligned-pool.js';
import { copyMemory } from '../../native/memory.js';
import type { RequestTable } from '../request-table.js';

export class BounceBuffers {
  readonly #table: RequestTable;
  readonly #pool: AlignedPool;
  /** The buffer of a slot; 0 for none. */
  readonly address: Float64Array;
  /** How much of it was transferred. */
  readonly done: Float64Array;

  constructor(table: RequestTable, pool: AlignedPool) {
    this.#table = table;
    this.#pool = pool;
    this.address = new Float64Array(table.capacity);
    this.done = new Float64Array(table.capacity);
  }

  /** False when there is no memory for it. */
  take(slot: number): boolean {
    try {
      this.address[slot] = this.#pool.take(this.#table.length[slot]);
    } catch {
      return false;
    }
    this.done[slot] = 0;
    return true;
  }

  release(slot: number): void {
    this.#pool.release(this.address[slot], this.#table.length[slot]);
    this.address[slot] = 0;
  }

  copyFromGuest(slot: number): void {
    this.#copy(slot, false);
  }

  copyToGuest(slot: number): void {
    this.#copy(slot, true);
  }

  #copy(slot: number, toGuest: boolean): void {
    const table = this.#table;
    let at = this.address[slot];
    for (let n = 0; n < table.segmentCount[slot]; n++) {
      const length = table.segmentLength(slot, n);
      const guest = table.segmentAddress(slot, n);
      if (toGuest) {
        copyMemory(guest, at, length);
      } else {
        copyMemory(at, guest, length);
      }
      at += length;
    }
  }
}

/** Whether all of a request's memory lies at multiples of the alignment, a power of two. */
export function isAligned(table: RequestTable, slot: number, alignment: number): boolean {
  const mask = alignment - 1;
  for (let n = 0; n < table.segmentCount[slot]; n++) {
    // Bit operations see the low 32 bits, which is all that an alignment needs.
    if (((table.segmentAddress(slot, n) | table.segmentLength(slot, n)) & mask) !== 0) {
      return false;
    }
  }
  return true;
}
