/** A queue thread as the main thread sees it. */
import { Worker } from 'node:worker_threads';
import { type ErrorCode, errorMessage, VduseError } from '../base/errors.js';
import type { MemoryUpdate, QueueHost, QueueListener, QueueSpec, QueueStop } from '../device/queue-host.js';
import { closeFd, createEventFd, signalEventFd } from '../native/fd.js';
import type { ThreadCommand, ThreadReport, ThreadSetup } from './messages.js';

interface PendingCall {
  readonly resolve: (result: QueueStop | undefined) => void;
  readonly reject: (error: Error) => void;
}

export interface QueueThreadOptions {
  readonly name: string;
  readonly pollUs: number;
}

export class QueueThread implements QueueHost {
  readonly name: string;
  readonly #worker: Worker;
  readonly #wakeFd: number;
  readonly #calls = new Map<number, PendingCall>();
  readonly #listeners = new Map<number, QueueListener>();
  /** Resolves when the thread takes no more queues, for whatever reason. */
  readonly ended: Promise<void>;
  readonly #exited: Promise<void>;
  #resolveEnded: () => void = () => {};
  #nextCall = 1;
  #failure: VduseError | undefined;

  private constructor(options: QueueThreadOptions) {
    this.name = options.name;
    this.#wakeFd = createEventFd();
    this.#worker = new Worker(new URL('./queue-thread-main.js', import.meta.url), {
      name: options.name,
      workerData: { wakeFd: this.#wakeFd, pollUs: options.pollUs } satisfies ThreadSetup,
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

  /** Starts a thread. Throws what keeps it from running, such as a kernel that refuses io_uring. */
  static async start(options: QueueThreadOptions): Promise<QueueThread> {
    const thread = new QueueThread(options);
    try {
      await new Promise<void>((resolve, reject) => {
        thread.#worker.once('message', () => resolve());
        thread.#worker.once('error', reject);
      });
    } catch (error) {
      await thread.#exited;
      throw error;
    }
    // The exports keep the process alive, not their threads.
    thread.#worker.unref();
    return thread;
  }

  async start(spec: QueueSpec, listener: QueueListener): Promise<void> {
    this.#listeners.set(spec.id, listener);
    try {
      await this.#call((call) => ({ kind: 'start', call, spec }));
    } catch (error) {
      this.#listeners.delete(spec.id);
      throw error;
    }
  }

  updateMemory(id: number, update: MemoryUpdate): void {
    if (this.#failure === undefined) {
      this.#send({ kind: 'memory', id, update });
    }
  }

  async stop(id: number, timeoutMs: number): Promise<QueueStop> {
    try {
      const result = await this.#call((call) => ({ kind: 'stop', call, id, timeoutMs }));
      return result ?? { drained: false, availIndex: 0 };
    } catch {
      // The kernel cancels what a thread that has ended had in flight, but nobody tells when that is over.
      return { drained: false, availIndex: 0 };
    } finally {
      this.#listeners.delete(id);
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

  #call(make: (call: number) => ThreadCommand): Promise<QueueStop | undefined> {
    if (this.#failure !== undefined) {
      return Promise.reject(this.#failure);
    }
    const call = this.#nextCall++;
    return new Promise((resolve, reject) => {
      // A thread is not to keep the process alive, but a call that waits for its answer is.
      this.#worker.ref();
      this.#calls.set(call, { resolve, reject });
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
        this.#listeners.get(report.id)?.onBroken(report.reason);
        break;
      case 'memory-miss':
        this.#listeners.get(report.id)?.onMemoryMiss();
        break;
      case 'errors':
        this.#listeners.get(report.id)?.onErrors(report.count, report.errno);
        break;
    }
  }

  #takeCall(call: number): PendingCall | undefined {
    const pending = this.#calls.get(call);
    this.#calls.delete(call);
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
    for (const { reject } of this.#calls.values()) {
      reject(this.#failure);
    }
    this.#calls.clear();
    for (const listener of this.#listeners.values()) {
      listener.onBroken(this.#failure.message);
    }
    this.#listeners.clear();
  }
}
