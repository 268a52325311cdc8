// Hot file: synchronous, no allocation after construction.
/**
 * The buffers of one chain before they are descriptors: what a driver gives to the device. The object is
 * reused from chain to chain.
 */
import { assert } from '../base/assert.js';

export class ChainBuffers {
  readonly capacity: number;
  readonly guestAddress: Float64Array;
  readonly length: Uint32Array;
  /** Buffers in all; those below `readableCount` are the device's to read, the rest to write. */
  count = 0;
  readableCount = 0;
  readableBytes = 0;
  writableBytes = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.guestAddress = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
  }

  clear(): void {
    this.count = 0;
    this.readableCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
  }

  /** Adds a buffer for the device to read. 2.7.4.2: they all come before the writable ones. */
  addReadable(address: number, length: number): void {
    assert(this.count === this.readableCount, 'readable buffers come before writable ones');
    this.#add(address, length);
    this.readableCount = this.count;
    this.readableBytes += length;
  }

  /** Adds a buffer for the device to write. */
  addWritable(address: number, length: number): void {
    this.#add(address, length);
    this.writableBytes += length;
  }

  #add(address: number, length: number): void {
    assert(this.count < this.capacity, 'a chain has no more buffers than there is room for');
    this.guestAddress[this.count] = address;
    this.length[this.count] = length;
    this.count++;
  }
}
