/** Buffers in memory that a disk's device sees as it is, lent and taken back: requests on them copy nothing. */
import type { BlkFrontend, SharedBuffer } from './blk-frontend.js';
import { PageAllocator } from './page-allocator.js';

const pageBytes = 4096;

interface Waiting {
  readonly length: number;
  readonly resolve: (bytes: Uint8Array) => void;
}

export class SharedPool {
  readonly #disk: BlkFrontend;
  readonly #memory: SharedBuffer;
  readonly #pages: PageAllocator;
  readonly #waiting: Waiting[] = [];

  /** `length`: bytes of the whole pool, and so of the longest buffer. */
  constructor(disk: BlkFrontend, length: number) {
    this.#disk = disk;
    this.#memory = disk.allocateSharedBuffer(length);
    this.#pages = new PageAllocator(length / pageBytes);
  }

  /** Lends a buffer; a promise where the pool is used up: who asked first gets first. */
  take(length: number): Uint8Array | Promise<Uint8Array> {
    const bytes = this.#waiting.length === 0 ? this.#take(length) : undefined;
    return bytes ?? new Promise((resolve) => this.#waiting.push({ length, resolve }));
  }

  release(bytes: Uint8Array): void {
    const offset = bytes.byteOffset - this.#memory.bytes.byteOffset;
    this.#pages.free(offset / pageBytes, Math.ceil(bytes.length / pageBytes));
    while (this.#waiting.length > 0) {
      const next = this.#take(this.#waiting[0].length);
      if (next === undefined) {
        return;
      }
      this.#waiting.shift()?.resolve(next);
    }
  }

  /** Takes the memory back from the device. All buffers have been released. */
  close(): Promise<void> {
    return this.#disk.removeSharedBuffer(this.#memory);
  }

  #take(length: number): Uint8Array | undefined {
    const page = this.#pages.allocate(Math.ceil(length / pageBytes));
    return page < 0 ? undefined : this.#memory.bytes.subarray(page * pageBytes, page * pageBytes + length);
  }
}
