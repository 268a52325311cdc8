/** Builds a queue on its thread from its plain description. */
import { unreachable } from '../base/assert.js';
import type { AlignedPool } from '../memory/aligned-pool.js';
import { BlkRequests } from './blk/blk-requests.js';
import { CustomRequests } from './custom/custom-requests.js';
import { type ChainHandler, DeviceQueue, type DeviceQueueContext } from './device-queue.js';
import type { QueueSpec } from './queue-host.js';

export interface QueueContext extends DeviceQueueContext {
  readonly pool: AlignedPool;
  /** A request failed. Called for each; the receiver limits what it tells. */
  readonly onError: (errno: number, operation: 'read' | 'write') => void;
  /** The function of a user's device threw. */
  readonly onFailure: (error: unknown) => void;
}

/** Throws PROTOCOL for a ring that can't be; nothing runs then. */
export function createQueue(spec: QueueSpec, context: QueueContext): DeviceQueue {
  const queue = new DeviceQueue(spec, context);
  queue.start(createHandler(spec, queue, context));
  return queue;
}

function createHandler(spec: QueueSpec, queue: DeviceQueue, context: QueueContext): ChainHandler {
  switch (spec.kind) {
    case 'blk':
      return new BlkRequests(spec, queue, context);
    case 'custom':
      return new CustomRequests(spec, queue, context);
    default:
      return unreachable(spec);
  }
}
