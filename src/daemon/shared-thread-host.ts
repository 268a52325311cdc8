/**
 * A software disk's queues on the thread of its front-end. Between two threads each request would cost two
 * wakes, which take longer than all the rest of it; here the device runs as soon as requests are published, and
 * a request that the page cache answers is over before the event loop turns.
 */
import type { QueueHost, QueueHosts } from '../device/queue-host.js';
import type { EventSource } from '../reactor/reactor.js';
import type { DeviceLoop } from '../software-vduse/device-loop.js';
import { LocalQueueHost } from '../worker/local-queue-host.js';

/** The front-end, as the device's reactor sees it. */
class FrontendSource implements EventSource {
  takeUsed: (() => number) | undefined;

  poll(): number {
    return this.takeUsed?.() ?? 0;
  }

  publish(): void {}

  onCompletion(): void {}

  /** The last turn's used buffers: the device publishes after its front-end was asked. */
  prepareToSleep(): boolean {
    return this.poll() > 0;
  }
}

export class SharedThreadHost extends LocalQueueHost implements QueueHosts, DeviceLoop {
  readonly #frontend: FrontendSource;

  constructor() {
    const source = new FrontendSource();
    super({ source });
    this.#frontend = source;
  }

  // QueueHosts

  assign(queueCount: number): Promise<QueueHost[]> {
    return Promise.resolve(new Array<QueueHost>(queueCount).fill(this));
  }

  local(): QueueHost {
    return this;
  }

  // DeviceLoop

  run(): void {
    this.runUntilIdle();
  }

  setFrontend(takeUsed: (() => number) | undefined): void {
    this.#frontend.takeUsed = takeUsed;
  }
}
