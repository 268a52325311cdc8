/**
 * The other bus driver: hands a device to its caller as vhost-vdpa does. The caller's own shared memory is
 * mapped directly, so nothing is ever copied; rings and buffers are the caller's business.
 */
import { VduseError } from '../base/errors.js';
import type { IotlbMap } from './iotlb.js';
import type { VdpaBusDriver } from './software-vduse.js';
import type { VdpaDevice } from './vdpa-device.js';

/** One queue as the caller laid it out in its memory: IO virtual addresses. */
export interface VhostQueue {
  readonly size: number;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  /** The eventfd that the device's interrupts signal: the caller's, open until the next reset. */
  readonly callFd: number;
  /** The available index to go on from; 0 for a fresh queue. */
  readonly availIndex?: number;
}

export class VhostDevice {
  readonly #device: VdpaDevice;

  constructor(device: VdpaDevice) {
    this.#device = device;
  }

  get name(): string {
    return this.#device.name;
  }

  get deviceId(): number {
    return this.#device.deviceId;
  }

  get deviceFeatures(): bigint {
    return this.#device.deviceFeatures;
  }

  get queueCount(): number {
    return this.#device.queueCount;
  }

  get config(): Uint8Array {
    return this.#device.config;
  }

  get status(): number {
    return this.#device.status;
  }

  queueSizeMax(index: number): number {
    return this.#device.queueSizeMax(index);
  }

  setDriverFeatures(features: bigint): void {
    this.#device.setDriverFeatures(features);
  }

  /**
   * Maps the caller's memory, in place of all that was mapped. The device is told and has let go of the old
   * map when it resolves. Throws DEVICE_BROKEN where it does not answer.
   */
  async setMemory(maps: readonly IotlbMap[]): Promise<void> {
    if (!(await this.#device.setMaps(maps))) {
      throw new VduseError('DEVICE_BROKEN', `'${this.name}' did not take the memory map`);
    }
  }

  setQueue(index: number, queue: VhostQueue): void {
    this.#device.setQueue(index, {
      size: queue.size,
      descriptorAddress: queue.descriptorAddress,
      driverAddress: queue.driverAddress,
      deviceAddress: queue.deviceAddress,
    });
    this.#device.setQueueState(index, queue.availIndex ?? 0);
    this.#device.setQueueCall(index, queue.callFd);
    this.#device.setQueueReady(index, true);
  }

  queueState(index: number): Promise<number | undefined> {
    return this.#device.queueState(index);
  }

  kick(index: number): void {
    this.#device.kick(index);
  }

  onConfigChange(callback: (() => void) | undefined): void {
    this.#device.setConfigCallback(callback);
  }

  /** Throws DEVICE_BROKEN where the device refuses the step or does not answer. */
  async setStatus(status: number): Promise<void> {
    if (!(await this.#device.setStatus(status))) {
      throw new VduseError('DEVICE_BROKEN', `'${this.name}' refused status 0x${status.toString(16)}`);
    }
  }

  /** False: the device did not agree in time; it is reset all the same. */
  reset(): Promise<boolean> {
    return this.#device.reset();
  }
}

export class VhostVdpa implements VdpaBusDriver {
  readonly #devices = new Map<string, VhostDevice>();

  async probe(device: VdpaDevice): Promise<void> {
    await device.reset();
    this.#devices.set(device.name, new VhostDevice(device));
  }

  async remove(device: VdpaDevice): Promise<void> {
    this.#devices.delete(device.name);
    await device.reset();
  }

  /** The device for its one user. */
  device(name: string): VhostDevice | undefined {
    return this.#devices.get(name);
  }
}
