/** Buffers in memory that a disk's device sees as it is: requests on them copy nothing. */
import { LendingPool } from '../memory/lending-pool.js';
import type { BlkFrontend, SharedBuffer } from './blk-frontend.js';

export class SharedPool {
  readonly #disk: BlkFrontend;
  readonly #memory: SharedBuffer;
  readonly #pool: LendingPool;

  /** `length`: bytes of the whole pool, and so of the longest buffer. */
  constructor(disk: BlkFrontend, length: number) {
    this.#disk = disk;
    this.#memory = disk.allocateSharedBuffer(length);
    this.#pool = new LendingPool(this.#memory.bytes);
  }

  /** Lends a buffer; a promise where the pool is used up: who asked first gets first. */
  take(length: number): Uint8Array | Promise<Uint8Array> {
    return this.#pool.take(length);
  }

  release(bytes: Uint8Array): void {
    this.#pool.release(bytes);
  }

  /** Takes the memory back from the device. All buffers have been released. */
  close(): Promise<void> {
    return this.#disk.removeSharedBuffer(this.#memory);
  }
}
