// Hot file: synchronous, no allocation per request, no throw after construction.
/**
 * One virtqueue at work, for every kind of device: takes chains and hands them to the device's handler, shows
 * the driver what was used, sleeps and wakes by kicks, and stops. One queue, one owner thread.
 */
import { GuestMemory, type MemoryRegion } from '../memory/guest-memory.js';
import { Errno } from '../native/errno.js';
import { createNotifier, type Notifier } from '../native/notifier.js';
import { type EventSource, Reactor } from '../reactor/reactor.js';
import type { DescriptorChain } from '../virtqueue/descriptor-chain.js';
import { hasFeature, RING_F } from '../virtqueue/layout.js';
import { SplitVirtqueue } from '../virtqueue/split-virtqueue.js';
import type { LatencyMemory } from './latency.js';
import type { MemoryUpdate } from './queue-host.js';
import { QueueField, SharedDeviceState } from './statistics.js';
import type { QueueActivation } from './virtio-device.js';

/** What every kind of queue needs to run: plain data. */
export interface DeviceQueueSpec {
  /** Unique in the process. */
  readonly id: number;
  readonly queue: QueueActivation;
  /** The features that the driver accepted. */
  readonly features: bigint;
  readonly memory: readonly MemoryRegion[];
  /** SharedDeviceState's buffer. */
  readonly shared: SharedArrayBuffer;
  /** How long its thread may look for requests before it sleeps, microseconds; 0: not at all. */
  readonly pollUs: number;
  /** Requests taken before the last ones are handed in and what has ended is published, 1 to limits.batchMax. */
  readonly batch: number;
}

export interface DeviceQueueContext {
  readonly reactor: Reactor;
  /** The driver broke the ring. The queue has stopped taking requests. */
  readonly onBroken: (reason: string) => void;
  /** A descriptor names memory that is not in the map. The queue waits for updateMemory. */
  readonly onMemoryMiss: () => void;
  /** The queue was asked to stop, and nothing is in flight any more. */
  readonly onDrained: () => void;
}

/** The device's part of a queue: what to do with a request. */
export interface ChainHandler {
  /**
   * Takes a request; the chain is valid during the call only. It ends with `complete(head, …)`, now or later.
   * Returns what is wrong with a chain that can't even be answered, which breaks the queue.
   */
  onChain(head: number, chain: DescriptorChain): string | undefined;
  /** The queue is to stop: what only waits for its time goes on at once. */
  expedite?(): void;
  /** Asks for the end of what is in flight. */
  cancel(): void;
  /** Releases what the handler holds. Not drained: what is in flight may still use it. */
  close(drained: boolean): void;
}

/** A driver that can't be interrupted after so many turns (tens of milliseconds) has gone. */
const notificationAttempts = 65_536;
/**
 * Of a large batch of completions the first ones are shown before the last ones are there: a front-end that sleeps
 * wakes meanwhile, and one that is awake goes on.
 */
const usedBatchMax = 32;
/** Copying this much takes longer than handing it in: larger batches would only keep their first requests waiting. */
const batchBytesMax = 256 * 1024;
const tokenKick = 0;
const tokenCancelled = 1;

export class DeviceQueue implements EventSource {
  readonly memory: GuestMemory;
  readonly size: number;
  readonly pollUs: number;
  readonly shared: SharedDeviceState;
  /** The queue's block of the shared counters, by QueueField. */
  readonly counters: Float64Array;
  readonly latencies: LatencyMemory;
  readonly #spec: DeviceQueueSpec;
  readonly #context: DeviceQueueContext;
  readonly #reactor: Reactor;
  readonly #queue: SplitVirtqueue;
  readonly #chain: DescriptorChain;
  readonly #notifier: Notifier;
  #handler: ChainHandler | undefined;
  #source = -1;
  /** Heads that were popped, and which of them is next. */
  readonly #heads: Uint16Array;
  #headCount = 0;
  #headNext = 0;
  #inFlight = 0;
  /** Attempts left to notify a driver that could not be interrupted yet. */
  #owedNotifications = 0;
  #taking = true;
  /** The kick eventfd is watched. */
  #isArmed = false;
  /** Waiting for a memory map that has the next head's buffers. */
  #missing = false;
  #stopping = false;
  #isBroken = false;
  #abandoned = false;

  /** Throws PROTOCOL where the rings are not in mapped memory. */
  constructor(spec: DeviceQueueSpec, context: DeviceQueueContext) {
    const { queue, features } = spec;
    this.#spec = spec;
    this.#context = context;
    this.#reactor = context.reactor;
    this.memory = new GuestMemory(spec.memory);
    this.#queue = new SplitVirtqueue(
      {
        ...queue,
        eventIdx: hasFeature(features, RING_F.EVENT_IDX),
        indirect: hasFeature(features, RING_F.INDIRECT_DESC),
      },
      this.memory,
    );
    this.size = queue.size;
    this.pollUs = spec.pollUs;
    this.#heads = new Uint16Array(spec.batch);
    this.#chain = this.#queue.createChain();
    this.#notifier = createNotifier(queue.notifier);
    this.shared = new SharedDeviceState(spec.shared);
    this.counters = this.shared.queue(queue.index);
    this.latencies = this.shared.latencies(queue.index);
    this.counters[QueueField.IN_FLIGHT] = 0;
    this.counters[QueueField.AVAIL_INDEX] = this.availIndex;
  }

  /** The next available index to take: heads that were popped and wait for memory count as not taken. */
  get availIndex(): number {
    return (this.#queue.availIndex - (this.#headCount - this.#headNext)) & 0xffff;
  }

  /** Whether what completes now must touch neither guest memory nor the ring. */
  get abandoned(): boolean {
    return this.#abandoned || this.counters[QueueField.ABANDONED_ID] >= this.#spec.id;
  }

  /** Starts to take requests, those that wait already included. */
  start(handler: ChainHandler): void {
    this.#handler = handler;
    this.#source = this.#reactor.add(this);
    this.#armKick();
    this.#queue.disableNotifications();
  }

  /** Ends a request: stages its used element, with the bytes written into the chain. */
  complete(head: number, writtenLength: number): void {
    this.#inFlight--;
    if (!this.abandoned) {
      this.#queue.addUsed(head, writtenLength);
      if (this.#queue.stagedUsed >= usedBatchMax) {
        this.publish();
      }
    }
    this.#drainIfIdle();
  }

  /** Takes no more requests; onDrained comes when none is in flight, maybe at once. */
  stop(): void {
    this.#taking = false;
    this.#stopping = true;
    this.#handler?.expedite?.();
    this.#drainIfIdle();
  }

  /** Takes requests again: the stop was given up. A ring that is broken stays alone. */
  resume(): void {
    this.#stopping = false;
    if (this.#isBroken) {
      return;
    }
    this.#taking = true;
    if (!this.#isArmed) {
      this.#armKick();
    }
    if (this.#missing) {
      // The map may have grown meanwhile.
      this.#missing = false;
      this.#takeHeads();
      if (this.#missing) {
        this.#context.onMemoryMiss();
      }
    }
  }

  /** Asks for the end of what is in flight. */
  cancel(): void {
    this.#handler?.cancel();
  }

  /** Gives up what is in flight. */
  abandon(): void {
    this.#abandoned = true;
  }

  /** Releases what the queue holds. Nothing is in flight, or the queue was abandoned. */
  close(): void {
    this.#reactor.ring.prepareCancel(
      { source: this.#source, token: tokenKick },
      this.#source,
      tokenCancelled,
    );
    // At once: nothing watches the kick eventfd any more when the stop is told.
    this.#reactor.ring.submit();
    this.#reactor.remove(this.#source);
    this.#handler?.close(this.#inFlight === 0);
  }

  /** The map has grown: a head that missed gets another chance, and its last when this is the answer to it. */
  updateMemory(update: MemoryUpdate): void {
    this.memory.update(update.regions);
    if (!this.#missing || !this.#taking || this.abandoned) {
      return;
    }
    this.#missing = false;
    const missed = this.#headNext;
    this.#takeHeads();
    if (!this.#missing) {
      return;
    }
    if (this.#headNext !== missed) {
      this.#context.onMemoryMiss();
    } else if (update.answersMiss) {
      this.#break('a descriptor names memory that is not mapped for it');
    }
  }

  // EventSource

  poll(): number {
    if (!this.#taking || this.#missing || this.abandoned) {
      return 0;
    }
    if (this.#headNext === this.#headCount && !this.#popHeads()) {
      return 0;
    }
    const first = this.#headNext;
    this.#takeHeads();
    if (this.#missing) {
      this.#context.onMemoryMiss();
    }
    return this.#headNext - first;
  }

  publish(): void {
    if (this.abandoned) {
      return;
    }
    if (this.#queue.stagedUsed > 0) {
      // Before the driver sees them: who has the answer to the last request finds none in flight.
      this.counters[QueueField.IN_FLIGHT] = this.#inFlight;
      if (this.#queue.publishUsed()) {
        this.#owedNotifications = notificationAttempts;
      }
    }
    if (this.#owedNotifications > 0) {
      this.#notify();
    }
  }

  prepareToSleep(): boolean {
    if (!this.#taking || this.#missing || this.abandoned) {
      return false;
    }
    this.counters[QueueField.IN_FLIGHT] = this.#inFlight;
    const owes = this.#owedNotifications > 0 || this.#headNext < this.#headCount;
    if (!owes && !this.#queue.enableNotifications()) {
      return false;
    }
    this.#queue.disableNotifications();
    return true;
  }

  onCompletion(token: number, _result: number, flags: number): void {
    if (token !== tokenKick) {
      return;
    }
    this.#queue.disableNotifications();
    this.#isArmed = Reactor.isArmed(flags);
    if (!this.#isArmed && this.#taking) {
      this.#armKick();
      // At once, so that the kick eventfd is watched when the start is told.
      this.#reactor.ring.submit();
    }
  }

  #notify(): void {
    if (this.#notifier.notify()) {
      this.#owedNotifications = 0;
      this.counters[QueueField.INTERRUPTS]++;
    } else {
      this.#owedNotifications--;
    }
  }

  #popHeads(): boolean {
    const count = this.#queue.popAvailable(this.#heads);
    if (count < 0) {
      this.#break('the available ring is not consistent');
    }
    this.#headNext = 0;
    this.#headCount = Math.max(0, count);
    return count > 0;
  }

  /** Takes heads that were popped, so many that their data is a batch. */
  #armKick(): void {
    this.#reactor.armPoll(this.#spec.queue.kickFd, this.#source, tokenKick);
    this.#isArmed = true;
  }

  #takeHeads(): void {
    let bytes = 0;
    while (this.#headNext < this.#headCount && bytes < batchBytesMax && this.#taking && !this.#missing) {
      if (this.#take(this.#heads[this.#headNext])) {
        this.#headNext++;
        bytes += this.#chain.readableBytes + this.#chain.writableBytes;
      }
    }
    this.counters[QueueField.AVAIL_INDEX] = this.availIndex;
  }

  /** False: the head's memory is not in the map yet. */
  #take(head: number): boolean {
    const result = this.#queue.readChain(head, this.#chain);
    if (result === -Errno.EFAULT) {
      this.#missing = true;
      return false;
    }
    if (result < 0) {
      this.#break('a descriptor chain is malformed');
      return true;
    }
    this.#inFlight++;
    const wrong = this.#handler?.onChain(head, this.#chain);
    if (wrong !== undefined) {
      this.#inFlight--;
      this.#break(wrong);
    }
    return true;
  }

  #break(reason: string): void {
    this.#taking = false;
    this.#isBroken = true;
    this.#context.onBroken(`queue ${this.#spec.queue.index}: ${reason}`);
  }

  #drainIfIdle(): void {
    if (this.#stopping && this.#inFlight === 0) {
      this.#stopping = false;
      this.publish();
      this.#context.onDrained();
    }
  }
}
