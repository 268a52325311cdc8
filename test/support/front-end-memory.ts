/**
 * A test front-end's guest memory, laid out to be awkward: two regions that follow each other for the guest lie
 * apart and in the other order on the host.
 */
import assert from 'node:assert/strict';
import { MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { closeFd } from '../../src/native/fd.js';
import { createMemoryFile } from '../../src/native/memory.js';
import { TestGuest } from './guest.js';

export const ringsStart = 2 ** 40;
const dataStart = 2 ** 20 - 4096;
/** What writable buffers hold before: what the device did not write is seen. */
export const untouched = 0xa5;

/** Guest memory by its guest addresses, whatever region they are in. */
export class FrontEndMemory {
  readonly regions: readonly MemoryRegion[];
  /** The file that the memory is, where it is shared. */
  readonly file: number | undefined;
  readonly #guest: TestGuest;
  readonly #free = new Map<number, number[]>();
  #next = dataStart;
  readonly #end: number;

  constructor(ringBytes: number, dataBytes: number, shared = false) {
    const rings = Math.ceil(ringBytes / 4096) * 4096;
    const half = Math.ceil(dataBytes / 8192) * 4096;
    const length = rings + 2 * half;
    this.file = shared ? createMemoryFile('front-end', length) : undefined;
    const guest = new TestGuest(length, this.file);
    const access = MemoryAccess.READ_WRITE;
    this.#guest = guest;
    this.#end = dataStart + 2 * half;
    this.regions = [
      guest.region({ start: ringsStart, offset: 0, length: rings, access }),
      guest.region({ start: dataStart, offset: rings + half, length: half, access }),
      guest.region({ start: dataStart + half, offset: rings, length: half, access }),
    ];
  }

  /** A piece of payload memory, aligned to its length up to a page. */
  allocate(length: number): number {
    const size = 2 ** Math.ceil(Math.log2(Math.max(length, 8)));
    const free = this.#free.get(size)?.pop();
    if (free !== undefined) {
      return free;
    }
    const alignment = Math.min(size, 4096);
    const address = Math.ceil(this.#next / alignment) * alignment;
    this.#next = address + size;
    assert.ok(this.#next <= this.#end, "the front-end's payload memory is used up");
    return address;
  }

  release(address: number, length: number): void {
    const size = 2 ** Math.ceil(Math.log2(Math.max(length, 8)));
    const list = this.#free.get(size) ?? [];
    list.push(address);
    this.#free.set(size, list);
  }

  write(address: number, bytes: Uint8Array): void {
    this.#forEachPiece(address, bytes.length, (piece, done) =>
      piece.set(bytes.subarray(done, done + piece.length)),
    );
  }

  fill(address: number, length: number, value: number): void {
    this.#forEachPiece(address, length, (piece) => piece.fill(value));
  }

  read(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#forEachPiece(address, length, (piece, done) => bytes.set(piece, done));
    return bytes;
  }

  /** Where a region begins in the file. */
  fileOffset(region: MemoryRegion): number {
    return region.hostAddress - this.#guest.hostAddress;
  }

  close(): void {
    this.#guest.close();
    if (this.file !== undefined) {
      closeFd(this.file);
    }
  }

  #forEachPiece(address: number, length: number, use: (piece: Uint8Array, done: number) => void): void {
    for (let done = 0; done < length; ) {
      const at = address + done;
      const region = this.regions.find((one) => at >= one.start && at < one.start + one.length);
      assert.ok(region !== undefined, `guest address ${at} is in no region`);
      const piece = Math.min(length - done, region.start + region.length - at);
      use(this.#guest.at(region.hostAddress + at - region.start, piece), done);
      done += piece;
    }
  }
}
