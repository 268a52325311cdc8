import type { EngineSpec } from '../../block/engine.js';
import type { DetectZeroes } from '../../block/node.js';
import type { DeviceQueueSpec } from '../device-queue.js';

/** All that a queue's thread needs to run a virtio-blk queue: plain data. */
export interface BlkQueueSpec extends DeviceQueueSpec {
  readonly kind: 'blk';
  readonly engine: EngineSpec;
  readonly readOnly: boolean;
  readonly detectZeroes: DetectZeroes;
  /** Offsets and lengths must be multiples of this. Bytes, a power of two. */
  readonly requestAlignment: number;
  /** The longest DISCARD or WRITE_ZEROES segment. Bytes. */
  readonly rangeBytesMax: number;
  readonly serial: string;
}
