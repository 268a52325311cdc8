/**
 * The process's queue threads. Unnamed queues are spread over a pool no larger than the machine, so more
 * queues than cores share threads; a name makes a thread of its own (QEMU's iothread).
 */
import { availableParallelism } from 'node:os';
import { type Logger, silentLogger } from '../base/log.js';
import type { NamedThread, QueueHost, QueueHosts } from '../device/queue-host.js';
import { chooseRing, type RingKind } from '../native/open-ring.js';
import { LocalQueueHost } from './local-queue-host.js';
import { QueueThread, type QueueThreadOptions } from './queue-thread.js';

export interface QueueThreadPoolOptions {
  /** Threads for queues that name none; the number of cores when absent. */
  readonly size?: number;
  /** The processors that unnamed threads may run on, one each in turn; any when absent. */
  readonly cpus?: readonly number[];
  /** Microseconds that a thread may look for work before it sleeps, whatever its queues ask for; 0: none. */
  readonly pollUs?: number;
  /** Milliseconds that a thread may take to start a queue; 5000 when absent. */
  readonly startTimeoutMs?: number;
  /** What moves the data; what VDUSE_RING says when absent, and without that what the machine allows. */
  readonly ring?: RingKind;
  /** Is told once when the queues can't have io_uring. */
  readonly logger?: Logger;
}

export class QueueThreadPool implements QueueHosts {
  readonly #size: number;
  readonly #cpus: readonly number[];
  readonly #options: Pick<QueueThreadOptions, 'pollUs' | 'startTimeoutMs' | 'ring'>;
  readonly #threads = new Map<string, Promise<QueueThread>>();
  readonly #started = new Set<QueueThread>();
  readonly #local: LocalQueueHost;
  /** Where the next unnamed queue goes: devices with one queue each spread as well as one with many. */
  #next = 0;

  constructor(options: QueueThreadPoolOptions = {}) {
    const { size, cpus = [], logger = silentLogger, ...threadOptions } = options;
    const { kind: ring, reason } =
      options.ring === undefined ? chooseRing() : { kind: options.ring, reason: '' };
    if (reason !== '') {
      logger.info(`queues use system calls instead of io_uring: ${reason}`);
    }
    this.#size = size ?? (cpus.length > 0 ? cpus.length : availableParallelism());
    this.#cpus = cpus;
    this.#options = { ...threadOptions, ring };
    this.#local = new LocalQueueHost({ ring });
    // Node joins its threads when the process ends; one that sleeps in the kernel must be told to wake.
    process.once('exit', this.#onExit);
  }

  async assign(queueCount: number, threads: readonly NamedThread[] = []): Promise<QueueHost[]> {
    return Promise.all(
      Array.from({ length: queueCount }, (_, queue) =>
        this.#thread(threads.length === 0 ? this.#nextUnnamed() : threads[queue % threads.length]),
      ),
    );
  }

  local(): QueueHost {
    return this.#local;
  }

  /** Names of the threads that run. */
  get threadNames(): string[] {
    return [...this.#started].map((thread) => thread.name);
  }

  /** Ends all threads. Their queues have been stopped before. */
  async close(): Promise<void> {
    process.off('exit', this.#onExit);
    const threads = [...this.#started];
    this.#threads.clear();
    this.#started.clear();
    await Promise.all(threads.map((thread) => thread.close()));
  }

  readonly #onExit = (): void => {
    for (const thread of this.#started) {
      thread.requestExit();
    }
  };

  #nextUnnamed(): NamedThread {
    const number = this.#next++ % this.#size;
    const name = `queues-${number}`;
    return this.#cpus.length === 0 ? { name } : { name, cpus: [this.#cpus[number % this.#cpus.length]] };
  }

  #thread(thread: NamedThread): Promise<QueueThread> {
    const { name } = thread;
    let starting = this.#threads.get(name);
    if (starting === undefined) {
      starting = QueueThread.start({ ...this.#options, ...thread }).then(
        (thread) => {
          this.#started.add(thread);
          void thread.ended.then(() => {
            // One that died is replaced when its name is wanted again.
            this.#started.delete(thread);
            if (this.#threads.get(name) === starting) {
              this.#threads.delete(name);
            }
          });
          return thread;
        },
        (error: unknown) => {
          // The next device may try again.
          this.#threads.delete(name);
          throw error;
        },
      );
      this.#threads.set(name, starting);
    }
    return starting;
  }
}
