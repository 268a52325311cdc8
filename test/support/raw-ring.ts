/** The rings' memory written by hand, for drivers and devices that do what ours never would. */
import { AVAIL, DESC, USED } from '../../src/virtqueue/layout.js';
import type { TestGuest } from './guest.js';
import type { QueueParts } from './queue-pair.js';

export interface RawDescriptor {
  readonly address: number | bigint;
  readonly length: number;
  readonly flags?: number;
  readonly next?: number;
}

export class RawRing {
  readonly #guest: TestGuest;
  readonly #parts: QueueParts;
  readonly #size: number;

  constructor(guest: TestGuest, parts: QueueParts, size: number) {
    this.#guest = guest;
    this.#parts = parts;
    this.#size = size;
  }

  /** Writes one descriptor of the queue's table, or of the indirect table area. */
  descriptor(index: number, value: RawDescriptor, where: 'table' | 'indirect' = 'table'): void {
    const at = this.#offset(this.#parts[where].hostAddress) + index * DESC.bytes;
    const { view } = this.#guest;
    view.setBigUint64(at + DESC.address, BigInt(value.address), true);
    view.setUint32(at + DESC.length, value.length, true);
    view.setUint16(at + DESC.flags, value.flags ?? 0, true);
    view.setUint16(at + DESC.next, value.next ?? 0, true);
  }

  /** Writes the available ring's slot `at`. */
  availableHead(at: number, head: number): void {
    const word = AVAIL.ring16 + (at & (this.#size - 1));
    this.#guest.view.setUint16(this.#offset(this.#parts.avail.hostAddress) + 2 * word, head, true);
  }

  set availableIndex(index: number) {
    this.#guest.view.setUint16(this.#offset(this.#parts.avail.hostAddress) + 2 * AVAIL.idx16, index, true);
  }

  usedElement(at: number, value: { id: number; length: number }): void {
    const word = USED.ring32 + 2 * (at & (this.#size - 1));
    const offset = this.#offset(this.#parts.used.hostAddress) + 4 * word;
    this.#guest.view.setUint32(offset, value.id, true);
    this.#guest.view.setUint32(offset + 4, value.length, true);
  }

  get usedIndex(): number {
    return this.#guest.view.getUint16(this.#offset(this.#parts.used.hostAddress) + 2 * USED.idx16, true);
  }

  set usedIndex(index: number) {
    this.#guest.view.setUint16(this.#offset(this.#parts.used.hostAddress) + 2 * USED.idx16, index, true);
  }

  #offset(hostAddress: number): number {
    return hostAddress - this.#guest.hostAddress;
  }
}
