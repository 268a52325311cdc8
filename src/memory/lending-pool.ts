/** Buffers out of one stretch of memory, lent and taken back. Who is short of memory waits for its turn. */
import { PageAllocator } from './page-allocator.js';

const pageBytes = 4096;

interface Waiting {
  readonly length: number;
  readonly resolve: (bytes: Uint8Array) => void;
}

export class LendingPool {
  readonly #bytes: Uint8Array;
  readonly #pages: PageAllocator;
  readonly #waiting: Waiting[] = [];

  /** Lends `bytes`, a whole number of pages; no buffer is longer than all of it. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#pages = new PageAllocator(bytes.length / pageBytes);
  }

  /** Lends a buffer; a promise where the pool is used up: who asked first gets first. */
  take(length: number): Uint8Array | Promise<Uint8Array> {
    const bytes = this.#waiting.length === 0 ? this.#take(length) : undefined;
    return bytes ?? new Promise((resolve) => this.#waiting.push({ length, resolve }));
  }

  release(bytes: Uint8Array): void {
    const offset = bytes.byteOffset - this.#bytes.byteOffset;
    this.#pages.free(offset / pageBytes, Math.ceil(bytes.length / pageBytes));
    while (this.#waiting.length > 0) {
      const next = this.#take(this.#waiting[0].length);
      if (next === undefined) {
        return;
      }
      this.#waiting.shift()?.resolve(next);
    }
  }

  #take(length: number): Uint8Array | undefined {
    const page = this.#pages.allocate(Math.ceil(length / pageBytes));
    return page < 0 ? undefined : this.#bytes.subarray(page * pageBytes, page * pageBytes + length);
  }
}
