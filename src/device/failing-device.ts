/**
 * A device that answers every request with an error, those included that another process had taken and never
 * answered: what is served in place of a device whose process is gone, so that nobody waits for it any longer.
 */
import { GuestMemory, MemoryAccess, type MemoryRegion } from '../memory/guest-memory.js';
import { Errno } from '../native/errno.js';
import { addressOf } from '../native/ffi.js';
import { copyMemory } from '../native/memory.js';
import { createNotifier, type Notifier } from '../native/notifier.js';
import type { DescriptorChain } from '../virtqueue/descriptor-chain.js';
import { AVAIL, DESC, hasFeature, RING_F, USED } from '../virtqueue/layout.js';
import { outstandingHeads } from '../virtqueue/outstanding-heads.js';
import { locateSplitRings, type SplitRings } from '../virtqueue/split-rings.js';
import { SplitVirtqueue } from '../virtqueue/split-virtqueue.js';
import { BLK_S } from './blk/blk-protocol.js';
import { takeQueues } from './running-queues.js';
import {
  type Activation,
  DeviceId,
  type DeviceListener,
  type QueueActivation,
  type QuiesceOptions,
  type QuiesceResult,
  type VirtioDevice,
} from './virtio-device.js';

export interface FailingDeviceOptions {
  /** See DeviceId. */
  readonly deviceId: number;
  readonly queueCount: number;
}

/** Often enough for those who wait, and no kick can get lost. */
const POLL_MS = 10;
const HEADS_PER_POLL = 128;

export class FailingDevice implements VirtioDevice {
  readonly deviceId: number;
  readonly vendorId = 0;
  /** All but packed rings: what the driver has accepted is what the dead process had offered. */
  readonly deviceFeatures = ((1n << 64n) - 1n) & ~(1n << BigInt(RING_F.RING_PACKED));
  readonly config = new Uint8Array(0);
  readonly queueCount: number;
  readonly queueSizeMax = 0;
  readonly #queues = new Map<number, FailingQueue>();
  #listener: DeviceListener | undefined;
  #timer: NodeJS.Timeout | undefined;
  #answered = 0;
  #unknown = 0;

  constructor(options: FailingDeviceOptions) {
    this.deviceId = options.deviceId;
    this.queueCount = options.queueCount;
  }

  /** Requests that got an error. */
  get answered(): number {
    return this.#answered;
  }

  /** Requests that are not answered, for it can't be told which ones they are. Whoever made them waits on. */
  get unknown(): number {
    return this.#unknown;
  }

  setListener(listener: DeviceListener | undefined): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    const answersWithStatus = this.deviceId === DeviceId.BLOCK;
    for (const queue of activation.queues) {
      const failing = new FailingQueue(queue, activation, answersWithStatus);
      this.#unknown += failing.unknown;
      this.#queues.set(queue.index, failing);
    }
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#poll(), POLL_MS);
    this.#poll();
  }

  async quiesce(options: QuiesceOptions): Promise<QuiesceResult> {
    const stopped = takeQueues(this.#queues, options);
    if (this.#queues.size === 0) {
      clearInterval(this.#timer);
    }
    return {
      drained: true,
      availIndices: new Map(stopped.map(([index, queue]) => [index, queue.availIndex])),
    };
  }

  updateMemory(regions: readonly MemoryRegion[]): void {
    for (const queue of this.#queues.values()) {
      queue.memory.update(regions);
    }
  }

  availIndex(queue: number): number {
    return this.#queues.get(queue)?.availIndex ?? 0;
  }

  #poll(): void {
    for (const [index, queue] of this.#queues) {
      const result = queue.poll();
      if (result === -Errno.EFAULT) {
        // It is mapped when the driver first uses it; the next poll sees what the transport found.
        this.#listener?.onMemoryMiss();
      } else if (result < 0) {
        this.#queues.delete(index);
        this.#listener?.onNeedsReset(`queue ${index}: a request can't be read`, index);
      } else {
        this.#answered += result;
      }
    }
  }
}

class FailingQueue {
  readonly memory: GuestMemory;
  /** Requests of which it can't be told which they are. */
  readonly unknown: number;
  readonly #queue: SplitVirtqueue;
  readonly #chain: DescriptorChain;
  readonly #notifier: Notifier;
  readonly #answersWithStatus: boolean;
  readonly #popped = new Uint16Array(HEADS_PER_POLL);
  #waiting: number[];
  #missed = false;

  /** Throws PROTOCOL where the rings are not in mapped memory. */
  constructor(queue: QueueActivation, activation: Activation, answersWithStatus: boolean) {
    const { features } = activation;
    this.memory = new GuestMemory(activation.memory);
    const rings = locateSplitRings(queue, this.memory, MemoryAccess.READ);
    const availIndex = Atomics.load(rings.avail16, AVAIL.idx16);
    const eventIdx = hasFeature(features, RING_F.EVENT_IDX);
    const indirect = hasFeature(features, RING_F.INDIRECT_DESC);
    this.#queue = new SplitVirtqueue({ ...queue, availIndex, eventIdx, indirect }, this.memory);
    this.#chain = this.#queue.createChain();
    this.#notifier = createNotifier(queue.notifier);
    this.#answersWithStatus = answersWithStatus;
    const { heads, count } = findOutstanding(rings, queue.size);
    this.#waiting = heads;
    this.unknown = count - heads.length;
  }

  get availIndex(): number {
    return this.#queue.availIndex;
  }

  /** Answers what waits. Returns how many requests that were, or a negative errno. */
  poll(): number {
    const count = this.#queue.popAvailable(this.#popped);
    if (count < 0) {
      return count;
    }
    this.#waiting.push(...this.#popped.subarray(0, count));
    let answered = 0;
    while (this.#waiting.length > 0) {
      const result = this.#answer(this.#waiting[0]);
      if (result < 0 && this.#retry(result)) {
        break;
      }
      this.#waiting.shift();
      answered++;
    }
    if (this.#queue.stagedUsed > 0) {
      this.#queue.publishUsed();
      // Whatever the driver's event index says: the process that it was meant for is gone.
      this.#notifier.notify();
    }
    return this.#missed ? -Errno.EFAULT : answered;
  }

  /** Whether a request gets a second chance, after the memory map was looked at again. */
  #retry(result: number): boolean {
    this.#missed = result === -Errno.EFAULT && !this.#missed;
    if (!this.#missed) {
      this.#queue.addUsed(this.#waiting[0], 0);
    }
    return this.#missed;
  }

  /** virtio-blk's status is the last byte that the device may write (5.2.6). */
  #answer(head: number): number {
    const chain = this.#chain;
    const result = this.#queue.readChain(head, chain);
    if (result < 0) {
      return result;
    }
    this.#missed = false;
    const last = chain.count - 1;
    if (this.#answersWithStatus && chain.count > chain.readableCount) {
      copyMemory(chain.hostAddress[last] + chain.length[last] - 1, addressOf(ioError), 1);
      this.#queue.addUsed(head, 1);
    } else {
      this.#queue.addUsed(head, 0);
    }
    return 0;
  }
}

const ioError = new Uint8Array(new Uint8Array([BLK_S.IOERR]).buffer);

/** The requests that were made available and are not answered. */
function findOutstanding(rings: SplitRings, size: number): { heads: number[]; count: number } {
  const availIndex = Atomics.load(rings.avail16, AVAIL.idx16);
  const usedIndex = Atomics.load(rings.used16, USED.idx16);
  const count = (availIndex - usedIndex) & 0xffff;
  const { table } = rings;
  const next = Array.from({ length: size }, (_, head) =>
    table.getUint16(head * DESC.bytes + DESC.next, true),
  );
  const heads = outstandingHeads({
    size,
    made: lastElements(availIndex, size, (slot) => rings.avail16[AVAIL.ring16 + slot]),
    used: lastElements(usedIndex, size, (slot) => rings.used32[USED.ring32 + 2 * slot]),
    outstanding: count,
    wasFilled: (head) => table.getUint32(head * DESC.bytes + DESC.length, true) !== 0,
    // Drivers other than Linux's may leave it alone.
    next: next.every((head) => head === next[0]) ? undefined : (head) => next[head],
  });
  return { heads: heads ?? [], count };
}

/** What a ring still has, the oldest first. Slots that were never written are zero, as the driver made them. */
function lastElements(index: number, size: number, read: (slot: number) => number): number[] {
  const elements: number[] = [];
  for (let n = size; n > 0; n--) {
    elements.push(read((index - n) & (size - 1)));
  }
  // Before the first turn of the ring is over its end is empty; a head 0 there would be a request that never was.
  const unwritten = index < size && elements.slice(0, size - index).every((head) => head === 0);
  return unwritten ? elements.slice(size - index) : elements;
}
