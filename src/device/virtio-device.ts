/** A virtio device as its transport sees it, and the plain data that passes between them. */
import type { MemoryRegion } from '../memory/guest-memory.js';
import type { NotifierSpec } from '../native/notifier.js';

/** Virtio 2.1 Device status field. */
export const DeviceStatus = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 64,
  FAILED: 128,
} as const;

/** Virtio 5: device ids. */
export const DeviceId = { NET: 1, BLOCK: 2, FS: 26 } as const;

export interface QueueActivation {
  readonly index: number;
  readonly size: number;
  /** Guest addresses of the descriptor table, the available ring and the used ring. */
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  /** The available index to go on from. */
  readonly availIndex: number;
  /** An eventfd that the driver signals; the transport's, open until the device has stopped the queue. */
  readonly kickFd: number;
  readonly notifier: NotifierSpec;
}

/** Everything a device needs to run, plain data so that it crosses threads. Only ready queues are in it. */
export interface Activation {
  /** The features that the driver accepted. */
  readonly features: bigint;
  readonly queues: readonly QueueActivation[];
  readonly memory: readonly MemoryRegion[];
}

/** What a device tells its transport. */
export interface DeviceListener {
  /** The configuration space has changed: the driver is to be interrupted. */
  onConfigChange(): void;
  /** The driver broke a rule, and the device stopped that queue: virtio's DEVICE_NEEDS_RESET. */
  onNeedsReset(reason: string, queue: number): void;
  /**
   * The driver named memory that is not in the map: the transport looks again and answers with updateMemory,
   * whether it found more or not.
   */
  onMemoryMiss(): void;
}

export interface QuiesceOptions {
  /** How long requests in flight may take before the device gives them up. Milliseconds. */
  readonly timeoutMs: number;
  /** Indices of the queues to stop; all that run when absent. */
  readonly queues?: readonly number[];
}

export interface QuiesceResult {
  /** False: a back-end held on to requests. Their memory must stay mapped. */
  readonly drained: boolean;
  /** The available index of each queue that was stopped, by queue index. */
  readonly availIndices: ReadonlyMap<number, number>;
}

export interface VirtioDevice {
  /** See DeviceId. */
  readonly deviceId: number;
  readonly vendorId: number;
  /** What the device offers; the transport adds the bits that are its own (ACCESS_PLATFORM). */
  readonly deviceFeatures: bigint;
  /** The configuration space as it is now. The transport copies it. */
  readonly config: Uint8Array;
  readonly queueCount: number;
  readonly queueSizeMax: number;
  setListener(listener: DeviceListener | undefined): void;
  /**
   * Starts the queues, beside those that run already. Throws PROTOCOL for rings that can't be. Every start is over then, but other queues may
   * run: `quiesce` stops them.
   */
  activate(activation: Activation): Promise<void>;
  /** Stops taking requests and waits, within its time, for those in flight. The queues can be activated again. */
  quiesce(options: QuiesceOptions): Promise<QuiesceResult>;
  /** More memory was mapped while the queues run. What was mapped before stays. */
  updateMemory(regions: readonly MemoryRegion[]): void;
  /** The available index of a queue that runs, for a transport that is asked for it. */
  availIndex(queue: number): number;
}
