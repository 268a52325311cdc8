/** A device on the vDPA bus, as its bus drivers see it: Linux's vdpa_config_ops, as far as they are used. */
import type { IotlbMap } from './iotlb.js';
import type { IovaDomain } from './iova-domain.js';

export interface VdpaDevice {
  readonly name: string;
  readonly deviceId: number;
  readonly vendorId: number;
  readonly deviceFeatures: bigint;
  readonly queueCount: number;
  /** The configuration space as it is now. */
  readonly config: Uint8Array;
  readonly status: number;
  /** How long a message may wait for its answer, milliseconds; 0 for ever. */
  readonly messageTimeoutMs: number;
  /** The device's IOMMU, made when first asked for. */
  openDomain(): IovaDomain;
  queueSizeMax(index: number): number;
  setDriverFeatures(features: bigint): void;
  setQueue(
    index: number,
    queue: { size: number; descriptorAddress: number; driverAddress: number; deviceAddress: number },
  ): void;
  setQueueReady(index: number, ready: boolean): void;
  /** The eventfd that the device's interrupts of this queue signal; -1: none. It stays the driver's. */
  setQueueCall(index: number, fd: number): void;
  setQueueState(index: number, availIndex: number): void;
  /** Undefined where the device did not answer. */
  queueState(index: number): Promise<number | undefined>;
  kick(index: number): void;
  setConfigCallback(callback: (() => void) | undefined): void;
  /** False: the device refused, or did not answer in time; the status stays as it was. */
  setStatus(status: number): Promise<boolean>;
  /** False: the device did not agree; it is reset all the same. */
  reset(): Promise<boolean>;
  /** Replaces the memory map by ranges of the driver's own files; false: the device did not take it. */
  setMaps(maps: readonly IotlbMap[]): Promise<boolean>;
  /** Tells the device that a range of its map has changed; false: it did not answer. */
  updateIotlb(start: bigint, last: bigint): Promise<boolean>;
}
