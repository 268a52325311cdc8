// Hot file: synchronous, no allocation after construction, no throw.
/**
 * One request's descriptors, validated and translated: readable segments first, then writable ones. The
 * object is reused for every chain of a queue; nobody keeps it across requests.
 */
import { type GuestMemory, MemoryAccess } from '../memory/guest-memory.js';

export class DescriptorChain {
  readonly capacity: number;
  readonly guestAddress: Float64Array;
  readonly hostAddress: Float64Array;
  readonly length: Float64Array;
  /** Segments in all; those below `readableCount` are the device's to read, the rest to write. */
  count = 0;
  readableCount = 0;
  readableBytes = 0;
  writableBytes = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.guestAddress = new Float64Array(capacity);
    this.hostAddress = new Float64Array(capacity);
    this.length = new Float64Array(capacity);
  }

  clear(): void {
    this.count = 0;
    this.readableCount = 0;
    this.readableBytes = 0;
    this.writableBytes = 0;
  }

  /**
   * Adds a buffer, in pieces where it crosses from one memory region into the next. Returns false where it
   * is not mapped for this access or where there is no room. An empty buffer adds nothing.
   */
  add(memory: GuestMemory, address: number, length: number, writable: boolean): boolean {
    const access = writable ? MemoryAccess.WRITE : MemoryAccess.READ;
    const host = length === 0 ? 0 : memory.translate(address, length, access);
    const added =
      host === 0 ? this.#addPieces(memory, address, length, access) : this.#append(address, host, length);
    if (!added) {
      return false;
    }
    if (writable) {
      this.writableBytes += length;
    } else {
      this.readableCount = this.count;
      this.readableBytes += length;
    }
    return true;
  }

  #append(address: number, host: number, length: number): boolean {
    const n = this.count;
    if (n === this.capacity) {
      return false;
    }
    this.guestAddress[n] = address;
    this.hostAddress[n] = host;
    this.length[n] = length;
    this.count = n + 1;
    return true;
  }

  /** What does not lie in one region as a whole. */
  #addPieces(memory: GuestMemory, address: number, length: number, access: MemoryAccess): boolean {
    let done = 0;
    while (done < length) {
      const piece = Math.min(length - done, memory.contiguousLength(address + done));
      const host = piece === 0 ? 0 : memory.translate(address + done, piece, access);
      if (host === 0 || !this.#append(address + done, host, piece)) {
        return false;
      }
      done += piece;
    }
    return true;
  }
}
