// Hot file: synchronous, no allocation, no throw after construction.
/**
 * The device's side of a split virtqueue (virtio 1.3, 2.7). It exists only while the queue is ready; its
 * configuration is another type.
 *
 * Memory order, once a batch: the driver publishes avail.idx with a release after it wrote the ring and the
 * descriptors, and we load it with Atomics.load (acquire). We write used elements plainly and publish
 * used.idx with Atomics.store, which the driver acquires (2.7.8).
 *
 * Release and acquire do not order a store before a later load, and twice that is needed, or both sides could go
 * to sleep: publishUsed stores used.idx and then loads the driver's event index or flags (2.7.10.1), while the
 * driver stores those and then loads used.idx; enableNotifications stores our event index or flags and then loads
 * avail.idx, while the driver does it the other way round. Stores and loads of Atomics are sequentially
 * consistent among themselves: a locked instruction on x86-64, STLR and LDAR on arm64, which do not pass each
 * other. A plain access in any of the four places could. The kernel's side has a full barrier (virtio_mb).
 * test/virtqueue/litmus.test.ts tries both kinds on the machine it runs on.
 */
import { limits } from '../base/limits.js';
import { type GuestMemory, MemoryAccess } from '../memory/guest-memory.js';
import { Errno } from '../native/errno.js';
import { DescriptorChain } from './descriptor-chain.js';
import {
  AVAIL,
  AVAIL_F_NO_INTERRUPT,
  crossesEvent,
  DESC,
  DESC_F_INDIRECT,
  DESC_F_NEXT,
  DESC_F_WRITE,
  USED,
  USED_F_NO_NOTIFY,
} from './layout.js';
import { locateSplitRings, type SplitRingsConfig } from './split-rings.js';

export interface SplitVirtqueueConfig extends SplitRingsConfig {
  /** The available index to go on from: 0 for a fresh queue. */
  readonly availIndex: number;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
}

const two32 = 0x1_0000_0000;
/** Addresses from here on are no doubles' integers, and no region's either. */
const addressHighLimit = 2 ** 21;

export class SplitVirtqueue {
  readonly size: number;
  readonly chainLengthMax: number;
  readonly #memory: GuestMemory;
  readonly #mask: number;
  readonly #eventIdx: boolean;
  readonly #indirect: boolean;
  readonly #table: DataView;
  readonly #avail16: Uint16Array;
  readonly #used16: Uint16Array;
  readonly #used32: Uint32Array;
  readonly #usedEvent16: number;
  readonly #availEvent16: number;
  /** Heads that were popped and not yet used: a driver that offers one twice has lost count. */
  readonly #inFlight: Uint8Array;
  #availIndex: number;
  #usedIndex: number;
  #publishedUsedIndex: number;

  /** Throws PROTOCOL where the configuration is not one that 2.7 allows or the rings are not in mapped memory. */
  constructor(config: SplitVirtqueueConfig, memory: GuestMemory) {
    const size = config.size;
    const rings = locateSplitRings(config, memory, MemoryAccess.READ);
    this.size = size;
    this.chainLengthMax = Math.max(size, limits.chainLengthMin);
    this.#memory = memory;
    this.#mask = size - 1;
    this.#eventIdx = config.eventIdx;
    this.#indirect = config.indirect;
    this.#table = rings.table;
    this.#avail16 = rings.avail16;
    this.#used16 = rings.used16;
    this.#used32 = rings.used32;
    this.#usedEvent16 = rings.usedEvent16;
    this.#availEvent16 = rings.availEvent16;
    this.#inFlight = new Uint8Array(size);
    this.#availIndex = config.availIndex & 0xffff;
    this.#usedIndex = Atomics.load(this.#used16, USED.idx16);
    this.#publishedUsedIndex = this.#usedIndex;
  }

  /** The next available index: what a transport hands on as the queue's state. */
  get availIndex(): number {
    return this.#availIndex;
  }

  /** Makes a chain object with room for any chain of this queue. */
  createChain(): DescriptorChain {
    return new DescriptorChain(this.chainLengthMax + 1);
  }

  /**
   * Takes the heads that the driver has made available, as many as the array holds. Returns their number, 0
   * where there is nothing new, or -EINVAL where the ring is broken.
   */
  popAvailable(heads: Uint16Array): number {
    // Pairs with the driver's release of avail.idx (2.7.13.3).
    const available = (Atomics.load(this.#avail16, AVAIL.idx16) - this.#availIndex) & 0xffff;
    if (available > this.size) {
      return -Errno.EINVAL;
    }
    const count = Math.min(available, heads.length);
    for (let n = 0; n < count; n++) {
      const head = this.#avail16[AVAIL.ring16 + (this.#availIndex & this.#mask)];
      if (head >= this.size || this.#inFlight[head] !== 0) {
        return -Errno.EINVAL;
      }
      this.#inFlight[head] = 1;
      heads[n] = head;
      this.#availIndex = (this.#availIndex + 1) & 0xffff;
    }
    return count;
  }

  /**
   * Validates the head's chain and translates it. Returns 0, -EINVAL for a chain that 2.7.5 forbids, or
   * -EFAULT for memory that is not mapped for what the descriptor wants.
   */
  readChain(head: number, chain: DescriptorChain): number {
    chain.clear();
    let table = this.#table;
    let base = 0;
    let entries = this.size;
    let indirect = false;
    let index = head;
    // One turn more than a chain has buffers: the descriptor that names an indirect table is none of them.
    for (let n = 0; n <= this.chainLengthMax; n++) {
      if (index >= entries) {
        return -Errno.EINVAL;
      }
      const at = base + index * DESC.bytes;
      // Read once: the driver may change the descriptor under us.
      const high = table.getUint32(at + DESC.address + 4, true);
      const address = table.getUint32(at + DESC.address, true) + high * two32;
      const length = table.getUint32(at + DESC.length, true);
      const flags = table.getUint16(at + DESC.flags, true);
      const next = table.getUint16(at + DESC.next, true);
      if (high >= addressHighLimit) {
        return -Errno.EFAULT;
      }
      if ((flags & DESC_F_INDIRECT) !== 0) {
        // 2.7.5.3: negotiated, not nested, not continued, and a whole number of entries.
        const allowed = this.#indirect && !indirect && (flags & DESC_F_NEXT) === 0;
        if (!allowed || length === 0 || length % DESC.bytes !== 0) {
          return -Errno.EINVAL;
        }
        const view = this.#memory.locate(address, length, MemoryAccess.READ);
        if (view === undefined) {
          return -Errno.EFAULT;
        }
        table = view;
        base = this.#memory.locatedOffset;
        entries = length / DESC.bytes;
        indirect = true;
        index = 0;
        continue;
      }
      const writable = (flags & DESC_F_WRITE) !== 0;
      // 2.7.4.2: device-readable buffers come before device-writable ones.
      if (!writable && chain.count > chain.readableCount) {
        return -Errno.EINVAL;
      }
      if (!chain.add(this.#memory, address, length, writable)) {
        return chain.count === chain.capacity ? -Errno.EINVAL : -Errno.EFAULT;
      }
      if ((flags & DESC_F_NEXT) === 0) {
        return 0;
      }
      index = next;
    }
    return -Errno.EINVAL;
  }

  /** Stages a used element; `publishUsed` makes it visible. `writtenLength`: bytes written into the chain. */
  addUsed(head: number, writtenLength: number): void {
    const slot = USED.ring32 + ((this.#usedIndex & this.#mask) << 1);
    this.#used32[slot] = head;
    this.#used32[slot + 1] = writtenLength;
    this.#inFlight[head] = 0;
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
  }

  /** How many used elements are staged. */
  get stagedUsed(): number {
    return (this.#usedIndex - this.#publishedUsedIndex) & 0xffff;
  }

  /** One release for the batch. Returns whether the driver wants a notification. */
  publishUsed(): boolean {
    const previous = this.#publishedUsedIndex;
    const current = this.#usedIndex;
    if (previous === current) {
      return false;
    }
    // Pairs with the driver's acquire of used.idx (2.7.14); also the full barrier described above.
    Atomics.store(this.#used16, USED.idx16, current);
    this.#publishedUsedIndex = current;
    if (this.#eventIdx) {
      return crossesEvent(Atomics.load(this.#avail16, this.#usedEvent16), current, previous);
    }
    return (Atomics.load(this.#avail16, AVAIL.flags16) & AVAIL_F_NO_INTERRUPT) === 0;
  }

  /** Asks for kicks again. Returns true when buffers came meanwhile: poll again before sleeping. */
  enableNotifications(): boolean {
    if (this.#eventIdx) {
      Atomics.store(this.#used16, this.#availEvent16, this.#availIndex);
    } else {
      Atomics.store(this.#used16, USED.flags16, 0);
    }
    // Recheck: the driver may have published before it saw the request.
    return Atomics.load(this.#avail16, AVAIL.idx16) !== this.#availIndex;
  }

  /** While the device runs it looks by itself. Under EVENT_IDX a stale event index does that for nothing. */
  disableNotifications(): void {
    if (!this.#eventIdx) {
      Atomics.store(this.#used16, USED.flags16, USED_F_NO_NOTIFY);
    }
  }
}
