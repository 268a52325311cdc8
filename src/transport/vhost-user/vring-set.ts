/** The rings of a session, and which of their queues the device has: started and stopped one by one. */
import { VduseError } from '../../base/errors.js';
import type { VirtioDevice } from '../../device/virtio-device.js';
import { signalEventFd } from '../../native/fd.js';
import type { MemoryTable } from './memory-table.js';
import { Vring } from './vring.js';

/** How often a queue is woken whose front-end does not kick. Between two wakes a busy queue finds work by itself. */
const pollMs = 1;

export class VringSet {
  readonly #device: VirtioDevice;
  readonly #drainTimeoutMs: number;
  readonly #vrings: readonly Vring[];
  /** The front-end did not accept protocol features, so it does not enable rings: all of them are. */
  enabledByDefault = false;
  #timer: NodeJS.Timeout | undefined;
  #drained = true;

  constructor(device: VirtioDevice, drainTimeoutMs: number) {
    this.#device = device;
    this.#drainTimeoutMs = drainTimeoutMs;
    this.#vrings = Array.from({ length: device.queueCount }, (_, index) => new Vring(index));
  }

  /** False: requests were given up. The memory that they use must stay mapped. */
  get drained(): boolean {
    return this.#drained;
  }

  get running(): readonly Vring[] {
    return this.#vrings.filter(({ running }) => running);
  }

  /** Throws PROTOCOL where the device has no such ring. */
  get(index: number): Vring {
    const vring = this.#vrings[index];
    if (vring === undefined) {
      throw new VduseError('PROTOCOL', `ring ${index}: the device has ${this.#vrings.length}`);
    }
    return vring;
  }

  async start(vrings: readonly Vring[], features: bigint, memory: MemoryTable): Promise<void> {
    if (vrings.length === 0) {
      return;
    }
    const queues = vrings.map((vring) => vring.activation(memory));
    for (const vring of vrings) {
      // Before it does: a start that fails halfway is to be stopped too.
      vring.running = true;
    }
    await this.#device.activate({ features, queues, memory: memory.regions });
    this.#updateTimer();
  }

  /** Throws TIMEOUT where requests in flight did not end. */
  async stop(vrings: readonly Vring[]): Promise<void> {
    const running = vrings.filter((vring) => vring.running);
    if (running.length === 0) {
      return;
    }
    const { drained, availIndices } = await this.#device.quiesce({
      timeoutMs: this.#drainTimeoutMs,
      queues: running.map(({ index }) => index),
    });
    for (const vring of running) {
      vring.running = false;
      vring.availIndex = availIndices.get(vring.index) ?? vring.availIndex;
    }
    this.#updateTimer();
    if (!drained) {
      this.#drained = false;
      throw new VduseError('TIMEOUT', 'requests in flight did not end in time and were given up');
    }
  }

  /** Stops all rings and forgets what the front-end has set. Throws as `stop`, done all the same. */
  async reset(): Promise<void> {
    try {
      await this.stop(this.#vrings);
    } finally {
      for (const vring of this.#vrings) {
        vring.reset();
      }
    }
  }

  #updateTimer(): void {
    clearInterval(this.#timer);
    const polled = this.running.filter(({ polled: isPolled }) => isPolled);
    if (polled.length > 0) {
      this.#timer = setInterval(() => {
        for (const { kickFd } of polled) {
          signalEventFd(kickFd);
        }
      }, pollMs);
    }
  }
}
