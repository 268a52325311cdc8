/**
 * The one status state machine, for all transports (virtio 1.3, 2.1 and 3.1). A transport decodes its
 * messages into these steps and is told by an error that a step is refused.
 */
import { VduseError } from '../base/errors.js';
import { hasFeature, RING_F } from '../virtqueue/layout.js';
import { type Activation, DeviceStatus, type QuiesceResult, type VirtioDevice } from './virtio-device.js';

/** What only the transport knows: where the driver put its rings and memory. */
export interface ActivationSource {
  /** The features that the driver accepted. */
  driverFeatures(): bigint;
  /** Maps memory and reads the queues' configuration. `availIndices` has those of queues that ran before. */
  prepareActivation(features: bigint, availIndices: ReadonlyMap<number, number>): Activation;
  /** The device stopped. Drained: nothing touches the memory map of the last activation any more. */
  onStopped(drained: boolean): void;
}

export class DeviceController {
  readonly #device: VirtioDevice;
  readonly #source: ActivationSource;
  #status = 0;
  #active = false;
  /** Where each queue stopped, since the last reset. */
  #availIndices: ReadonlyMap<number, number> = new Map();

  constructor(device: VirtioDevice, source: ActivationSource) {
    this.#device = device;
    this.#source = source;
  }

  get #offered(): bigint {
    return this.#device.deviceFeatures | (1n << BigInt(RING_F.ACCESS_PLATFORM));
  }

  get status(): number {
    return this.#status;
  }

  get active(): boolean {
    return this.#active;
  }

  /**
   * Throws where the step is refused; the status then stays as it was. `timeoutMs` bounds a reset, which
   * throws TIMEOUT, done all the same, when requests in flight outlast it.
   */
  async setStatus(status: number, timeoutMs: number): Promise<void> {
    if (status === 0) {
      const { drained } = await this.stop(timeoutMs);
      this.#availIndices = new Map();
      this.#status = 0;
      if (!drained) {
        // The driver is not to reuse memory that a late transfer may still write to.
        throw new VduseError('TIMEOUT', 'requests in flight did not end in time for the reset');
      }
      return;
    }
    const set = status & ~this.#status;
    if ((set & DeviceStatus.FEATURES_OK) !== 0) {
      checkFeatures(this.#source.driverFeatures(), this.#offered);
    }
    if ((set & DeviceStatus.DRIVER_OK) !== 0) {
      await this.#start(timeoutMs);
    }
    if ((set & DeviceStatus.FAILED) !== 0) {
      await this.stop(timeoutMs);
    }
    this.#status = status;
  }

  /** Goes on a device that another process had served: the driver will not repeat its steps. */
  async resume(status: number, timeoutMs: number): Promise<void> {
    if ((status & DeviceStatus.DRIVER_OK) !== 0) {
      await this.#start(timeoutMs);
    }
    this.#status = status;
  }

  /** The memory map has changed: stop, swap, go on. */
  async remap(timeoutMs: number): Promise<void> {
    if (!this.#active) {
      return;
    }
    const result = await this.stop(timeoutMs);
    if (!result.drained) {
      throw new VduseError('TIMEOUT', 'requests in flight did not end in time for the memory map to change');
    }
    await this.#start(timeoutMs);
  }

  availIndex(queue: number): number {
    return this.#active ? this.#device.availIndex(queue) : (this.#availIndices.get(queue) ?? 0);
  }

  /** Stops the queues, waiting at most that long for requests in flight. */
  async stop(timeoutMs: number): Promise<QuiesceResult> {
    if (!this.#active) {
      return { drained: true, availIndices: this.#availIndices };
    }
    this.#active = false;
    const result = await this.#device.quiesce({ timeoutMs });
    this.#availIndices = result.availIndices;
    this.#source.onStopped(result.drained);
    return result;
  }

  async #start(timeoutMs: number): Promise<void> {
    const features = this.#source.driverFeatures();
    checkFeatures(features, this.#offered);
    try {
      await this.#device.activate(this.#source.prepareActivation(features, this.#availIndices));
    } catch (error) {
      // The queues that did start have requests in flight, maybe: their memory must outlive them.
      const { drained } = await this.#device.quiesce({ timeoutMs });
      this.#source.onStopped(drained);
      throw error;
    }
    this.#active = true;
  }
}

/** 2.2: the driver accepts a subset of what is offered, and VERSION_1, for no legacy layout is spoken. Throws PROTOCOL. */
export function checkFeatures(features: bigint, offered: bigint): void {
  const unknown = features & ~offered;
  if (unknown !== 0n) {
    throw new VduseError(
      'PROTOCOL',
      `the driver accepted features that were not offered: 0x${unknown.toString(16)}`,
    );
  }
  if (!hasFeature(features, RING_F.VERSION_1)) {
    throw new VduseError(
      'PROTOCOL',
      'the driver did not accept VERSION_1, and legacy drivers are not served',
    );
  }
}
