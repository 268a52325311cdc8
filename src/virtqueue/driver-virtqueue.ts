// Hot file: synchronous, no allocation and no throw after construction.
/**
 * The driver's side of a split virtqueue (virtio 1.3, 2.7): what a front-end does. It hands out its
 * descriptors as chains, publishes them in batches and takes the used elements back.
 *
 * The device is not believed: used elements are checked against what was given to it, and which descriptors
 * belong to a chain is remembered here and never read back from the shared table.
 *
 * Memory order, once a batch: we write descriptors and ring plainly and publish avail.idx with Atomics.store,
 * which the device acquires (2.7.13.3). used.idx is loaded with Atomics.load (acquire). Where a load must not
 * pass the store before it (2.7.13.4.1), both are Atomics, for the reasons told in split-virtqueue.ts: publishing
 * and looking whether the device wants a kick, asking for notifications and looking for used elements again.
 */

import { VduseError } from '../base/errors.js';
import { type GuestMemory, MemoryAccess } from '../memory/guest-memory.js';
import { Errno } from '../native/errno.js';
import { viewMemory } from '../native/ffi.js';
import type { ChainBuffers } from './chain-buffers.js';
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
import { locateSplitRings, type SplitRings, type SplitRingsConfig } from './split-rings.js';

/** Guest memory for indirect tables: one table for each descriptor of the queue, one after the other. */
export interface IndirectTables {
  readonly address: number;
  /** Descriptors of one table. Longer chains are added directly. */
  readonly entries: number;
}

export interface DriverVirtqueueConfig extends SplitRingsConfig {
  readonly eventIdx: boolean;
  /** Absent where INDIRECT_DESC was not negotiated. */
  readonly indirectTables?: IndirectTables | undefined;
}

/** Used elements of one batch, reused from batch to batch. */
export class UsedBatch {
  readonly capacity: number;
  readonly token: Uint32Array;
  readonly writtenLength: Uint32Array;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.token = new Uint32Array(capacity);
    this.writtenLength = new Uint32Array(capacity);
  }
}

const two32 = 0x1_0000_0000;

function locateTables(config: DriverVirtqueueConfig, memory: GuestMemory): DataView {
  const tables = config.indirectTables;
  if (tables === undefined) {
    return new DataView(new ArrayBuffer(0));
  }
  const length = tables.entries * DESC.bytes * config.size;
  const host = memory.translate(tables.address, length, MemoryAccess.READ_WRITE);
  if (host === 0 || length === 0) {
    throw new VduseError(
      'PROTOCOL',
      `indirect tables at ${tables.address}: their ${length} bytes do not lie in mapped memory`,
    );
  }
  return new DataView(viewMemory(host, length));
}

/** All of a descriptor, in the order of struct virtq_desc (2.7.5). */
function writeDescriptor(
  table: DataView,
  at: number,
  address: number,
  length: number,
  flags: number,
  next: number,
): void {
  table.setUint32(at + DESC.address, address % two32, true);
  table.setUint32(at + DESC.address + 4, address / two32, true);
  table.setUint32(at + DESC.length, length, true);
  table.setUint16(at + DESC.flags, flags, true);
  table.setUint16(at + DESC.next, next, true);
}

/** The flags of a chain's buffer: its direction, and whether another one follows. */
function bufferFlags(buffers: ChainBuffers, n: number): number {
  const direction = n < buffers.readableCount ? 0 : DESC_F_WRITE;
  return n + 1 < buffers.count ? direction | DESC_F_NEXT : direction;
}

export class DriverVirtqueue {
  readonly size: number;
  readonly #mask: number;
  readonly #eventIdx: boolean;
  readonly #rings: SplitRings;
  readonly #tables: DataView;
  readonly #tablesAddress: number;
  readonly #tableEntries: number;
  /** The descriptor after this one, in its chain or in the free list. */
  readonly #next: Uint16Array;
  /** For heads in flight: the last descriptor, how many they are, the caller's token and the room to write. */
  readonly #tail: Uint16Array;
  readonly #descriptors: Uint16Array;
  readonly #token: Uint32Array;
  readonly #writableBytes: Float64Array;
  #freeHead = 0;
  #freeCount = 0;
  #availIndex = 0;
  #publishedAvailIndex = 0;
  #usedIndex = 0;

  /**
   * Makes the rings new, as `reset` does: before the device learns of them. Throws PROTOCOL where 2.7 does
   * not allow the configuration or a part does not lie in memory that we may write.
   */
  constructor(config: DriverVirtqueueConfig, memory: GuestMemory) {
    const size = config.size;
    this.#rings = locateSplitRings(config, memory, MemoryAccess.READ_WRITE);
    this.#tables = locateTables(config, memory);
    this.#tablesAddress = config.indirectTables?.address ?? 0;
    this.#tableEntries = config.indirectTables?.entries ?? 0;
    this.size = size;
    this.#mask = size - 1;
    this.#eventIdx = config.eventIdx;
    this.#next = new Uint16Array(size);
    this.#tail = new Uint16Array(size);
    this.#descriptors = new Uint16Array(size);
    this.#token = new Uint32Array(size);
    this.#writableBytes = new Float64Array(size);
    this.reset();
  }

  /**
   * After a reset of the device: forgets what was in flight and makes the rings new, with notifications on.
   * `index` is where both rings begin: 0, unless the device was told another available index.
   */
  reset(index = 0): void {
    const { avail16, used16, used32, usedEvent16, availEvent16 } = this.#rings;
    for (let n = 0; n < this.size; n++) {
      this.#next[n] = n + 1;
    }
    this.#descriptors.fill(0);
    this.#freeHead = 0;
    this.#freeCount = this.size;
    this.#availIndex = index & 0xffff;
    this.#publishedAvailIndex = this.#availIndex;
    this.#usedIndex = this.#availIndex;
    used32.fill(0);
    used16[availEvent16] = index;
    avail16.fill(0);
    avail16[usedEvent16] = index;
    Atomics.store(used16, USED.idx16, this.#usedIndex);
    Atomics.store(avail16, AVAIL.idx16, this.#availIndex);
  }

  /** Descriptors that no chain holds. */
  get freeDescriptors(): number {
    return this.#freeCount;
  }

  /** Chains that were published and did not come back. */
  get inFlight(): number {
    return (this.#publishedAvailIndex - this.#usedIndex) & 0xffff;
  }

  /**
   * Stages a chain; `publishAvailable` shows it to the device. It takes one descriptor and an indirect table
   * where it has several buffers and they fit in one, and a descriptor for each buffer otherwise. Returns
   * its head, -ENOSPC where too few descriptors are free, or -EINVAL for a chain that can never be added.
   * `token` comes back with the used element.
   */
  addAvailable(buffers: ChainBuffers, token: number): number {
    const indirect = buffers.count > 1 && buffers.count <= this.#tableEntries;
    const needed = indirect ? 1 : buffers.count;
    // 2.7.5.2: a chain is at most 2^32 bytes long in total.
    if (needed === 0 || needed > this.size || buffers.readableBytes + buffers.writableBytes > two32) {
      return -Errno.EINVAL;
    }
    if (needed > this.#freeCount) {
      return -Errno.ENOSPC;
    }
    const head = this.#freeHead;
    const tail = indirect ? this.#writeIndirect(head, buffers) : this.#writeDirect(head, buffers);
    this.#freeHead = this.#next[tail];
    this.#freeCount -= needed;
    this.#tail[head] = tail;
    this.#descriptors[head] = needed;
    this.#token[head] = token;
    this.#writableBytes[head] = buffers.writableBytes;
    this.#rings.avail16[AVAIL.ring16 + (this.#availIndex & this.#mask)] = head;
    this.#availIndex = (this.#availIndex + 1) & 0xffff;
    return head;
  }

  /** One release for the batch. Returns whether the device wants a kick. */
  publishAvailable(): boolean {
    const { avail16, used16, availEvent16 } = this.#rings;
    const previous = this.#publishedAvailIndex;
    const current = this.#availIndex;
    if (previous === current) {
      return false;
    }
    // Pairs with the device's acquire of avail.idx (2.7.13.3); also the full barrier described above.
    Atomics.store(avail16, AVAIL.idx16, current);
    this.#publishedAvailIndex = current;
    if (this.#eventIdx) {
      return crossesEvent(Atomics.load(used16, availEvent16), current, previous);
    }
    return (Atomics.load(used16, USED.flags16) & USED_F_NO_NOTIFY) === 0;
  }

  /**
   * Takes used elements, as many as the batch holds, and frees their descriptors. Returns their number, 0
   * where there is nothing new, or -EINVAL where the device broke the ring: then only a reset helps. What
   * came before the broken element is handed out first.
   */
  popUsed(batch: UsedBatch): number {
    const { used16, used32 } = this.#rings;
    // Pairs with the device's release of used.idx (2.7.8).
    const used = (Atomics.load(used16, USED.idx16) - this.#usedIndex) & 0xffff;
    if (used > this.inFlight) {
      return -Errno.EINVAL;
    }
    const count = Math.min(used, batch.capacity);
    for (let n = 0; n < count; n++) {
      const slot = USED.ring32 + ((this.#usedIndex & this.#mask) << 1);
      // Read once: the device may change the element under us.
      const head = used32[slot];
      const writtenLength = used32[slot + 1];
      const given = head < this.size && this.#descriptors[head] !== 0;
      if (!given || writtenLength > this.#writableBytes[head]) {
        return n === 0 ? -Errno.EINVAL : n;
      }
      batch.token[n] = this.#token[head];
      batch.writtenLength[n] = writtenLength;
      this.#free(head);
      this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    }
    return count;
  }

  /** Asks for used buffer notifications again. Returns true when elements came meanwhile: take them first. */
  enableNotifications(): boolean {
    const { avail16, used16, usedEvent16 } = this.#rings;
    if (this.#eventIdx) {
      Atomics.store(avail16, usedEvent16, this.#usedIndex);
    } else {
      Atomics.store(avail16, AVAIL.flags16, 0);
    }
    // Recheck: the device may have published before it saw the request.
    return Atomics.load(used16, USED.idx16) !== this.#usedIndex;
  }

  /** While the driver looks by itself. Under EVENT_IDX a stale event index does that for nothing. */
  disableNotifications(): void {
    if (!this.#eventIdx) {
      Atomics.store(this.#rings.avail16, AVAIL.flags16, AVAIL_F_NO_INTERRUPT);
    }
  }

  /** A descriptor for each buffer, in the order of the free list. Returns the last. */
  #writeDirect(head: number, buffers: ChainBuffers): number {
    let index = head;
    let tail = head;
    for (let n = 0; n < buffers.count; n++) {
      tail = index;
      index = this.#next[tail];
      writeDescriptor(
        this.#rings.table,
        tail * DESC.bytes,
        buffers.guestAddress[n],
        buffers.length[n],
        bufferFlags(buffers, n),
        index,
      );
    }
    return tail;
  }

  /** The head's own table, and the head to name it. Returns the head, which is the chain's last too. */
  #writeIndirect(head: number, buffers: ChainBuffers): number {
    const offset = head * this.#tableEntries * DESC.bytes;
    for (let n = 0; n < buffers.count; n++) {
      const at = offset + n * DESC.bytes;
      writeDescriptor(
        this.#tables,
        at,
        buffers.guestAddress[n],
        buffers.length[n],
        bufferFlags(buffers, n),
        n + 1,
      );
    }
    const length = buffers.count * DESC.bytes;
    writeDescriptor(
      this.#rings.table,
      head * DESC.bytes,
      this.#tablesAddress + offset,
      length,
      DESC_F_INDIRECT,
      0,
    );
    return head;
  }

  #free(head: number): void {
    this.#next[this.#tail[head]] = this.#freeHead;
    this.#freeHead = head;
    this.#freeCount += this.#descriptors[head];
    this.#descriptors[head] = 0;
  }
}
