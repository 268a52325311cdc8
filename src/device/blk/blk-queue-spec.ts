import type { EngineSpec } from '../../block/engine.js';
import type { DetectZeroes } from '../../block/node.js';
import type { MemoryRegion } from '../../memory/guest-memory.js';
import type { QueueActivation } from '../virtio-device.js';

/** All that a queue's thread needs to run a virtio-blk queue: plain data. */
export interface BlkQueueSpec {
  /** Unique in the process. */
  readonly id: number;
  readonly queue: QueueActivation;
  /** The features that the driver accepted. */
  readonly features: bigint;
  readonly memory: readonly MemoryRegion[];
  readonly engine: EngineSpec;
  readonly readOnly: boolean;
  readonly detectZeroes: DetectZeroes;
  /** Offsets and lengths must be multiples of this. Bytes. */
  readonly requestAlignment: number;
  /** The longest DISCARD or WRITE_ZEROES segment. Bytes. */
  readonly rangeBytesMax: number;
  readonly serial: string;
  /** SharedDeviceState's buffer. */
  readonly shared: SharedArrayBuffer;
}
