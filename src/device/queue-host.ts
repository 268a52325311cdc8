/**
 * Where queues run, as devices see it: a queue thread, or the main thread for code that needs its event loop.
 * The implementations are in worker/.
 */
import type { MemoryRegion } from '../memory/guest-memory.js';
import type { BlkQueueSpec } from './blk/blk-queue-spec.js';
import type { CustomQueueSpec } from './custom/custom-requests.js';

export type QueueSpec = BlkQueueSpec | CustomQueueSpec;

export interface QueueStop {
  /** False: requests were given up; their memory must stay mapped. */
  readonly drained: boolean;
  readonly availIndex: number;
}

/** What a request of a front-end failed with. */
export interface IoError {
  /** `write`: everything that is no read. */
  readonly operation: 'read' | 'write';
  /** Positive. */
  readonly errno: number;
}

export interface QueueListener {
  /** The driver broke the ring; the queue has stopped. */
  onBroken(reason: string): void;
  /** Requests failed since the last call (which comes at most once a second), the last one so. */
  onErrors(count: number, error: IoError): void;
  /** The driver named memory that is not in the map; the queue waits for updateMemory. */
  onMemoryMiss(): void;
  /** The function of a user's device threw; on the main thread only, for errors do not cross threads whole. */
  onFailure?(error: unknown): void;
}

export interface MemoryUpdate {
  readonly regions: readonly MemoryRegion[];
  /** The queue had told of a miss, and this is what was found: what it still misses is not there. */
  readonly answersMiss: boolean;
}

export interface QueueHost {
  readonly name: string;
  /**
   * Starts a queue. Throws PROTOCOL for a ring that can't be, and TIMEOUT where its thread does not answer: then the
   * queue may start later all the same, and is to be stopped.
   */
  start(spec: QueueSpec, listener: QueueListener): Promise<void>;
  /** Gives a queue another memory map, of which the old one is a part. */
  updateMemory(id: number, update: MemoryUpdate): void;
  /**
   * Stops a queue when its requests in flight end in that time (and a moment for its thread to say so); else it goes
   * on: not drained, and nothing was lost. The queue may have been stopped by `stop` meanwhile.
   */
  drain(id: number, timeoutMs: number): Promise<QueueStop>;
  /** Stops a queue, waiting at most that long (and a moment for its thread to say so) for its requests in flight. */
  stop(id: number, timeoutMs: number): Promise<QueueStop>;
}

/** A thread that queues ask for by name (QEMU's iothread). Whoever names it first says what it is like. */
export interface NamedThread {
  readonly name: string;
  /** The processors that it may run on; all when absent. */
  readonly cpus?: readonly number[];
  /** How long it may look for work before it sleeps, microseconds, whatever its queues ask for. */
  readonly pollUs?: number;
}

export interface QueueHosts {
  /** The hosts for so many queues: the threads given, in turn, else spread over the pool. */
  assign(queueCount: number, threads?: readonly NamedThread[]): Promise<QueueHost[]>;
  /** The host for code that lives on the main thread. */
  local(): QueueHost;
}
