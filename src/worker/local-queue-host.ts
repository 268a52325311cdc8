/** Queues on the main thread, for block drivers whose promises need its event loop, and beside a front-end that is there. */
import { limits } from '../base/limits.js';
import type { MemoryUpdate, QueueHost, QueueListener, QueueSpec, QueueStop } from '../device/queue-host.js';
import type { RingKind } from '../native/open-ring.js';
import { type EventSource, Reactor } from '../reactor/reactor.js';
import { QueueRunner } from './queue-runner.js';

export interface LocalQueueHostOptions {
  /** The process's own choice when absent. */
  readonly ring?: RingKind;
  /** Looked at in each turn of the queues' reactor, and once more before it closes. */
  readonly source?: EventSource;
}

export class LocalQueueHost implements QueueHost {
  readonly name = 'main';
  #running: { reactor: Reactor; runner: QueueRunner } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #heartbeat: NodeJS.Timeout | undefined;
  readonly #options: LocalQueueHostOptions;

  constructor(options: LocalQueueHostOptions) {
    this.#options = options;
  }

  async start(spec: QueueSpec, listener: QueueListener): Promise<void> {
    const { reactor, runner } = this.#open();
    try {
      runner.start(spec, {
        onBroken: (reason) => listener.onBroken(reason),
        onErrors: (count, error) => listener.onErrors(count, error),
        onFailure: (error) => listener.onFailure?.(error),
        // Later, as it comes from a thread: the answer must not reach the queue from inside its question.
        onMemoryMiss: () => setImmediate(() => listener.onMemoryMiss()),
      });
    } catch (error) {
      this.#closeIfIdle();
      throw error;
    }
    reactor.wake();
  }

  updateMemory(id: number, update: MemoryUpdate): void {
    this.#running?.runner.updateMemory(id, update);
    this.#running?.reactor.wake();
  }

  stop(id: number, timeoutMs: number): Promise<QueueStop> {
    return this.#end((runner, settle) => runner.stop(id, timeoutMs, settle));
  }

  drain(id: number, timeoutMs: number): Promise<QueueStop> {
    return this.#end((runner, settle) => runner.drain(id, timeoutMs, settle));
  }

  #end(end: (runner: QueueRunner, settle: (result: QueueStop) => void) => void): Promise<QueueStop> {
    const running = this.#running;
    if (running === undefined) {
      return Promise.resolve({ drained: true, availIndex: 0 });
    }
    return new Promise((resolve) => {
      end(running.runner, (result) => {
        resolve(result);
        // Later: this may be called from inside a turn of the reactor.
        setImmediate(() => this.#closeIfIdle());
      });
      running.reactor.wake();
      this.#scheduleTick();
    });
  }

  /** Takes the queues' turns now, instead of when the event loop comes to it. */
  protected runUntilIdle(): void {
    this.#running?.reactor.runUntilIdle();
  }

  #open(): { reactor: Reactor; runner: QueueRunner } {
    if (this.#running === undefined) {
      const { ring, source } = this.#options;
      const reactor = new Reactor(ring === undefined ? {} : { ring });
      if (source !== undefined) {
        reactor.add(source);
      }
      this.#running = { reactor, runner: new QueueRunner(reactor) };
      reactor.attachToEventLoop();
      // As a thread ticks before it sleeps: errors that were held back are told some time.
      this.#heartbeat = setInterval(() => this.#running?.runner.tick(), limits.sleepMsMax);
    }
    return this.#running;
  }

  #closeIfIdle(): void {
    if (this.#running?.runner.queueCount === 0) {
      clearTimeout(this.#timer);
      clearInterval(this.#heartbeat);
      // What the queues published when they stopped.
      this.#options.source?.poll();
      this.#running.runner.close();
      this.#running.reactor.close();
      this.#running = undefined;
    }
  }

  /** Stops have a time by which requests are cancelled, and one by which they are given up. */
  #scheduleTick(): void {
    clearTimeout(this.#timer);
    const ms = this.#running?.runner.msToNextTick() ?? Number.POSITIVE_INFINITY;
    if (ms !== Number.POSITIVE_INFINITY) {
      const tick = (): void => {
        this.#running?.runner.tick();
        this.#running?.reactor.wake();
        this.#scheduleTick();
      };
      this.#timer = setTimeout(tick, Math.min(limits.sleepMsMax, Math.ceil(ms)));
    }
  }
}
