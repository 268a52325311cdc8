/** The queues of one thread on one reactor: what a queue thread and the main thread have in common. */

import { closeSpareArenas } from '../block/iovec-arenas.js';
import { createQueue } from '../device/create-queue.js';
import type { DeviceQueue } from '../device/device-queue.js';
import type { IoError, MemoryUpdate, QueueListener, QueueSpec, QueueStop } from '../device/queue-host.js';
import { AlignedPool } from '../memory/aligned-pool.js';
import type { Reactor } from '../reactor/reactor.js';

/** Errors of one queue are told at most this often. */
const errorReportMs = 1000;
/** How much of a stop's time requests get before they are cancelled: the rest is for the cancellation. */
const patience = 0.5;

interface RunningQueue {
  readonly queue: DeviceQueue;
  readonly errors: ErrorReport;
  stop?: PendingStop;
}

interface PendingStop {
  /** The queue goes on then, if it has not stopped. */
  readonly goOnAtMs: number;
  readonly cancelAtMs: number;
  readonly deadlineMs: number;
  cancelled: boolean;
  readonly settle: (result: QueueStop) => void;
}

/** Counts errors, and tells of them when the last telling is a while ago. */
class ErrorReport {
  readonly #listener: QueueListener;
  #count = 0;
  #error: IoError = { operation: 'read', errno: 0 };
  #toldAtMs = Number.NEGATIVE_INFINITY;

  constructor(listener: QueueListener) {
    this.#listener = listener;
  }

  add(error: IoError): void {
    this.#count++;
    this.#error = error;
    this.flush(performance.now());
  }

  get isHolding(): boolean {
    return this.#count > 0;
  }

  flush(nowMs: number): void {
    if (nowMs - this.#toldAtMs >= errorReportMs) {
      this.tell(nowMs);
    }
  }

  /** Tells of what was held back, however short a time ago the last telling is. */
  tell(nowMs: number): void {
    if (this.#count > 0) {
      this.#listener.onErrors(this.#count, this.#error);
      this.#count = 0;
      this.#toldAtMs = nowMs;
    }
  }
}

export class QueueRunner {
  readonly #reactor: Reactor;
  readonly #pool = new AlignedPool();
  readonly #queues = new Map<number, RunningQueue>();
  /** Stops under way. */
  #stops = 0;
  #mayHoldErrors = false;

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
  }

  get queueCount(): number {
    return this.#queues.size;
  }

  /** Throws PROTOCOL for a ring that can't be. */
  start(spec: QueueSpec, listener: QueueListener): void {
    const errors = new ErrorReport(listener);
    const queue = createQueue(spec, {
      reactor: this.#reactor,
      pool: this.#pool,
      onBroken: (reason) => listener.onBroken(reason),
      onError: (errno, operation) => {
        errors.add({ errno, operation });
        this.#mayHoldErrors = true;
      },
      onFailure: (error) => listener.onFailure?.(error),
      onMemoryMiss: () => listener.onMemoryMiss(),
      onDrained: () => this.#settle(spec.id, true),
    });
    this.#queues.set(spec.id, { queue, errors });
  }

  updateMemory(id: number, update: MemoryUpdate): void {
    this.#queues.get(id)?.queue.updateMemory(update);
  }

  /** Stops a queue; `settle` is called once, maybe at once. */
  stop(id: number, timeoutMs: number, settle: (result: QueueStop) => void): void {
    const now = performance.now();
    this.#end(id, settle, {
      cancelAtMs: now + timeoutMs * patience,
      deadlineMs: now + timeoutMs,
      goOnAtMs: Number.POSITIVE_INFINITY,
    });
  }

  /** Stops a queue when it has nothing in flight in time, else lets it go on; `settle` is called once, maybe at once. */
  drain(id: number, timeoutMs: number, settle: (result: QueueStop) => void): void {
    this.#end(id, settle, {
      cancelAtMs: Number.POSITIVE_INFINITY,
      deadlineMs: Number.POSITIVE_INFINITY,
      goOnAtMs: performance.now() + timeoutMs,
    });
  }

  #end(
    id: number,
    settle: (result: QueueStop) => void,
    { cancelAtMs, deadlineMs, goOnAtMs }: Pick<PendingStop, 'cancelAtMs' | 'deadlineMs' | 'goOnAtMs'>,
  ): void {
    const running = this.#queues.get(id);
    if (running === undefined) {
      settle({ drained: true, availIndex: 0 });
      return;
    }
    const { stop: earlier } = running;
    this.#stops += earlier === undefined ? 1 : 0;
    // Asked for twice, by a change of what is below the device and by its reset, the more impatient one counts.
    running.stop = {
      cancelAtMs: Math.min(cancelAtMs, earlier?.cancelAtMs ?? Number.POSITIVE_INFINITY),
      deadlineMs: Math.min(deadlineMs, earlier?.deadlineMs ?? Number.POSITIVE_INFINITY),
      // Who stops it for good does not let it go on.
      goOnAtMs: Math.max(goOnAtMs, earlier?.goOnAtMs ?? 0),
      cancelled: earlier?.cancelled ?? false,
      settle: (result) => {
        earlier?.settle(result);
        settle(result);
      },
    };
    running.queue.stop();
  }

  /** Whether `tick` has something to wait for: a stop that is under way, or errors that are held back. */
  get isWaiting(): boolean {
    return this.#stops > 0 || this.#mayHoldErrors;
  }

  /** Milliseconds until `tick` has something to do; Infinity when nothing waits. */
  msToNextTick(): number {
    let next = Number.POSITIVE_INFINITY;
    for (const { stop } of this.#queues.values()) {
      if (stop !== undefined) {
        next = Math.min(next, stop.goOnAtMs, stop.cancelled ? stop.deadlineMs : stop.cancelAtMs);
      }
    }
    return next === Number.POSITIVE_INFINITY ? next : Math.max(0, next - performance.now());
  }

  /** Cancels and gives up the requests of queues whose stop takes too long; tells of errors held back. */
  tick(): void {
    const now = performance.now();
    this.#mayHoldErrors = false;
    for (const [id, { queue, errors, stop }] of this.#queues) {
      errors.flush(now);
      this.#mayHoldErrors ||= errors.isHolding;
      if (stop !== undefined && now >= stop.goOnAtMs) {
        this.#goOn(id);
        continue;
      }
      if (stop !== undefined && !stop.cancelled && now >= stop.cancelAtMs) {
        stop.cancelled = true;
        queue.cancel();
      }
      if (stop !== undefined && now >= stop.deadlineMs) {
        queue.abandon();
        this.#settle(id, false);
      }
    }
  }

  /** Releases what the thread keeps for its queues. */
  close(): void {
    this.#pool.close();
    closeSpareArenas();
  }

  #goOn(id: number): void {
    const running = this.#queues.get(id);
    const stop = running?.stop;
    if (running !== undefined && stop !== undefined) {
      this.#stops--;
      delete running.stop;
      running.queue.resume();
      stop.settle({ drained: false, availIndex: running.queue.availIndex });
    }
  }

  #settle(id: number, drained: boolean): void {
    const running = this.#queues.get(id);
    if (running?.stop === undefined) {
      return;
    }
    if (drained && performance.now() >= running.stop.goOnAtMs) {
      // Whoever asked waits no more, and counts on a queue that goes on.
      this.#goOn(id);
      return;
    }
    this.#queues.delete(id);
    this.#stops--;
    const { availIndex } = running.queue;
    running.queue.close();
    running.errors.tell(performance.now());
    running.stop.settle({ drained, availIndex });
  }
}
