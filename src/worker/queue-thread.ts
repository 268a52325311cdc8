/** A queue thread as the main thread sees it. */
import { Worker } from 'node:worker_threads';
import { type ErrorCode, errorMessage, VduseError } from '../base/errors.js';
import { deliverReport } from '../block/engine-reports.js';
import type {
  MemoryUpdate,
  NamedThread,
  QueueHost,
  QueueListener,
  QueueSpec,
  QueueStop,
} from '../device/queue-host.js';
import { QueueField, SharedDeviceState } from '../device/statistics.js';
import { closeFd, createEventFd, signalEventFd } from '../native/fd.js';
import type { RingKind } from '../native/open-ring.js';
import type { ThreadCommand, ThreadReport, ThreadSetup } from './messages.js';

interface PendingCall {
  readonly resolve: (result: QueueStop | undefined) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/** How long a thread may take to start a queue. It may be busy with others, or stuck in a call that blocks. */
const startTimeoutMsDefault = 5000;
/** How much longer than its own time a stop may take to be answered. */
const stopGrace = 0.25;

const graceMs = (timeoutMs: number): number => timeoutMs + Math.max(50, timeoutMs * stopGrace);

export interface QueueThreadOptions extends NamedThread {
  readonly ring: RingKind;
  readonly startTimeoutMs?: number;
}

export class QueueThread implements QueueHost {
  readonly name: string;
  readonly #worker: Worker;
  readonly #wakeFd: number;
  readonly #calls = new Map<number, PendingCall>();
  readonly #queues = new Map<number, { spec: QueueSpec; listener: QueueListener }>();
  readonly #startTimeoutMs: number;
  /** Resolves when the thread takes no more queues, for whatever reason. */
  readonly ended: Promise<void>;
  readonly #exited: Promise<void>;
  #resolveEnded: () => void = () => {};
  #nextCall = 1;
  #failure: VduseError | undefined;

  private constructor(options: QueueThreadOptions) {
    this.name = options.name;
    this.#startTimeoutMs = options.startTimeoutMs ?? startTimeoutMsDefault;
    this.#wakeFd = createEventFd();
    this.#worker = new Worker(new URL('./queue-thread-main.js', import.meta.url), {
      name: options.name,
      workerData: { ...options, wakeFd: this.#wakeFd } satisfies ThreadSetup,
    });
    this.ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#exited = new Promise((resolve) => this.#worker.once('exit', () => resolve()));
    this.#worker.on('message', (report: ThreadReport) => this.#onReport(report));
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.on('exit', () => {
      this.#fail(new Error('it has ended'));
      // Nothing is sent any more after a failure.
      closeFd(this.#wakeFd);
    });
  }

  /** Starts a thread. Throws what keeps it from running, such as a kernel that refuses its ring. */
  static async start(options: QueueThreadOptions): Promise<QueueThread> {
    const thread = new QueueThread(options);
    try {
      await new Promise<void>((resolve, reject) => {
        thread.#worker.once('message', () => resolve());
        thread.#worker.once('error', reject);
      });
    } catch (error) {
      await thread.#exited;
      throw startError(error, options.cpus);
    }
    // The exports keep the process alive, not their threads.
    thread.#worker.unref();
    return thread;
  }

  async start(spec: QueueSpec, listener: QueueListener): Promise<void> {
    this.#queues.set(spec.id, { spec, listener });
    await this.#call((call) => ({ kind: 'start', call, spec }), this.#startTimeoutMs);
  }

  updateMemory(id: number, update: MemoryUpdate): void {
    if (this.#failure === undefined) {
      this.#send({ kind: 'memory', id, update });
    }
  }

  async drain(id: number, timeoutMs: number): Promise<QueueStop> {
    if (!this.#queues.has(id)) {
      return { drained: true, availIndex: 0 };
    }
    const deadlineMs = performance.timeOrigin + performance.now() + timeoutMs;
    try {
      const result = await this.#call(
        (call) => ({ kind: 'drain', call, id, deadlineMs }),
        graceMs(timeoutMs),
      );
      if (result?.drained === true) {
        this.#queues.delete(id);
      }
      return result ?? { drained: false, availIndex: 0 };
    } catch {
      // A thread that is stuck goes on with the queue when it comes to this command.
      return { drained: false, availIndex: 0 };
    }
  }

  async stop(id: number, timeoutMs: number): Promise<QueueStop> {
    const queue = this.#queues.get(id);
    if (queue === undefined) {
      return { drained: true, availIndex: 0 };
    }
    try {
      const result = await this.#call((call) => ({ kind: 'stop', call, id, timeoutMs }), graceMs(timeoutMs));
      return result ?? { drained: false, availIndex: 0 };
    } catch {
      // The thread is stuck, or has ended: then the kernel cancels its requests, but nobody tells when that is over.
      const { shared, queue: place } = queue.spec;
      const counters = new SharedDeviceState(shared).queue(place.index);
      counters[QueueField.ABANDONED_ID] = id;
      return { drained: false, availIndex: counters[QueueField.AVAIL_INDEX] };
    } finally {
      this.#queues.delete(id);
    }
  }

  /** Asks the thread to end, without waiting: for the process's own end. */
  requestExit(): void {
    if (this.#failure === undefined) {
      this.#send({ kind: 'exit' });
    }
  }

  /** Ends the thread. Its queues have been stopped before. */
  async close(): Promise<void> {
    // Where nothing else keeps the process alive it would end here, and whoever waits for this never goes on.
    this.#worker.ref();
    this.requestExit();
    await this.#exited;
  }

  /** Sends a command and waits for its answer, which is an error when it does not come in time. */
  #call(make: (call: number) => ThreadCommand, withinMs: number): Promise<QueueStop | undefined> {
    if (this.#failure !== undefined) {
      return Promise.reject(this.#failure);
    }
    const call = this.#nextCall++;
    return new Promise((resolve, reject) => {
      // A thread is not to keep the process alive, but a call that waits for its answer is.
      this.#worker.ref();
      const timer = setTimeout(() => {
        this.#takeCall(call);
        reject(new VduseError('TIMEOUT', `queue thread '${this.name}' does not answer`));
      }, withinMs);
      this.#calls.set(call, { resolve, reject, timer });
      this.#send(make(call));
    });
  }

  #send(command: ThreadCommand): void {
    this.#worker.postMessage(command);
    signalEventFd(this.#wakeFd);
  }

  #onReport(report: ThreadReport): void {
    switch (report.kind) {
      case 'ready':
        break;
      case 'started':
        this.#takeCall(report.call)?.resolve(undefined);
        break;
      case 'stopped':
        this.#takeCall(report.call)?.resolve(report.result);
        break;
      case 'failed':
        this.#takeCall(report.call)?.reject(new VduseError(report.code as ErrorCode, report.message));
        break;
      case 'broken':
        this.#queues.get(report.id)?.listener.onBroken(report.reason);
        break;
      case 'memory-miss':
        this.#queues.get(report.id)?.listener.onMemoryMiss();
        break;
      case 'engine':
        deliverReport(report.node, report.report);
        break;
      case 'errors':
        this.#queues.get(report.id)?.listener.onErrors(report.count, report.error);
        break;
    }
  }

  #takeCall(call: number): PendingCall | undefined {
    const pending = this.#calls.get(call);
    this.#calls.delete(call);
    clearTimeout(pending?.timer);
    if (this.#calls.size === 0) {
      this.#worker.unref();
    }
    return pending;
  }

  /** The thread has ended: whoever waits for it is told, and so are its queues. */
  #fail(error: unknown): void {
    if (this.#failure !== undefined) {
      return;
    }
    this.#failure = new VduseError('DEVICE_BROKEN', `queue thread '${this.name}': ${errorMessage(error)}`, {
      cause: error,
    });
    this.#resolveEnded();
    for (const { reject, timer } of this.#calls.values()) {
      clearTimeout(timer);
      reject(this.#failure);
    }
    this.#calls.clear();
    for (const { listener } of this.#queues.values()) {
      listener.onBroken(this.#failure.message);
    }
  }
}

/** What a thread throws has lost its class on the way here. */
function startError(error: unknown, cpus: readonly number[] | undefined): VduseError {
  const message = errorMessage(error);
  return new VduseError('SYSTEM_CALL', `cannot start a thread for queues: ${message}`, {
    cause: error,
    ...(cpus !== undefined && message.includes('affinity')
      ? { hint: 'Give processors that this machine has, and that this process may use: `nproc`, `lscpu`.' }
      : {}),
  });
}
