/**
 * A software disk's queues on the thread of its front-end. Between two threads each request would cost two
 * wakes, which take longer than all the rest of it; here the device runs as soon as requests are published, and
 * a request that the page cache answers is over before the event loop turns.
 */
import { limits } from '../base/limits.js';
import type {
  MemoryUpdate,
  QueueHost,
  QueueHosts,
  QueueListener,
  QueueSpec,
  QueueStop,
} from '../device/queue-host.js';
import { type EventSource, Reactor } from '../reactor/reactor.js';
import type { DeviceLoop } from '../software-vduse/device-loop.js';
import { QueueRunner } from '../worker/queue-runner.js';

export class SharedThreadHost implements QueueHost, QueueHosts, DeviceLoop, EventSource {
  readonly name = 'main';
  #running: { reactor: Reactor; runner: QueueRunner } | undefined;
  #takeUsed: (() => number) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #heartbeat: NodeJS.Timeout | undefined;

  // QueueHosts

  assign(queueCount: number): Promise<QueueHost[]> {
    return Promise.resolve(new Array<QueueHost>(queueCount).fill(this));
  }

  local(): QueueHost {
    return this;
  }

  // DeviceLoop

  run(): void {
    this.#running?.reactor.runUntilIdle();
  }

  setFrontend(takeUsed: (() => number) | undefined): void {
    this.#takeUsed = takeUsed;
  }

  // EventSource: the front-end, as the device's reactor sees it.

  poll(): number {
    return this.#takeUsed?.() ?? 0;
  }

  publish(): void {}

  onCompletion(): void {}

  /** The last turn's used buffers: the device publishes after its front-end was asked. */
  prepareToSleep(): boolean {
    return this.poll() > 0;
  }

  // QueueHost

  async start(spec: QueueSpec, listener: QueueListener): Promise<void> {
    const { reactor, runner } = this.#open();
    try {
      runner.start(spec, {
        onBroken: (reason) => listener.onBroken(reason),
        onErrors: (count, errno) => listener.onErrors(count, errno),
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
    const running = this.#running;
    if (running === undefined) {
      return Promise.resolve({ drained: true, availIndex: 0 });
    }
    return new Promise((resolve) => {
      running.runner.stop(id, timeoutMs, (result) => {
        resolve(result);
        // Later: this may be called from inside a turn of the reactor.
        setImmediate(() => this.#closeIfIdle());
      });
      running.reactor.wake();
      this.#scheduleTick();
    });
  }

  #open(): { reactor: Reactor; runner: QueueRunner } {
    if (this.#running === undefined) {
      const reactor = new Reactor();
      reactor.add(this);
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
      this.poll();
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
