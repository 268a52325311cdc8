/** Page-aligned buffers for requests whose guest memory O_DIRECT refuses. One pool a thread. */
import { mapAnonymous, pageSize, unmap } from '../native/memory.js';

/** Bytes that the pool keeps for reuse; what is released beyond goes back to the system. */
const keptBytesMax = 16 << 20;

export class AlignedPool {
  /** Free buffers by the power of two of their length. */
  readonly #free: number[][] = [];
  #keptBytes = 0;

  /** The address of a buffer of at least `length` bytes. Throws SYSTEM_CALL (ENOMEM) when there is none. */
  take(length: number): number {
    const order = sizeOrder(length);
    const address = this.#free[order]?.pop();
    if (address !== undefined) {
      this.#keptBytes -= 2 ** order;
      return address;
    }
    return mapAnonymous(2 ** order);
  }

  /** Gives a buffer back; `length` as it was asked for. */
  release(address: number, length: number): void {
    const order = sizeOrder(length);
    if (this.#keptBytes + 2 ** order > keptBytesMax) {
      unmap(address, 2 ** order);
      return;
    }
    this.#keptBytes += 2 ** order;
    this.#free[order] ??= [];
    this.#free[order].push(address);
  }

  /** Returns the kept buffers to the system. */
  close(): void {
    this.#free.forEach((list, order) => {
      for (const address of list) {
        unmap(address, 2 ** order);
      }
    });
    this.#free.length = 0;
    this.#keptBytes = 0;
  }
}

function sizeOrder(length: number): number {
  return Math.ceil(Math.log2(Math.max(length, pageSize)));
}
