/** A virtio-blk device over a block node, with a front-end that drives it. */
import { silentLogger } from '../../src/base/log.js';
import { openLocalNode } from '../../src/block/drivers/local-node.js';
import type { BlockNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BlkDevice, type BlkDeviceOptions } from '../../src/device/blk/blk-device.js';
import type { QueueHosts } from '../../src/device/queue-host.js';
import { BlkClient } from './blk-client.js';
import { FrontEnd, type FrontEndOptions } from './front-end.js';
import type { MemoryDisk } from './memory-disk.js';

export interface BlkSetup {
  readonly device: BlkDevice;
  readonly frontEnd: FrontEnd;
  readonly client: BlkClient;
  /** Stops the device and closes the node. */
  close(timeoutMs?: number): Promise<void>;
}

export interface BlkSetupOptions {
  readonly node: BlockNode;
  readonly hosts: QueueHosts;
  readonly device?: Partial<Omit<BlkDeviceOptions, 'node' | 'hosts'>>;
  readonly frontEnd?: FrontEndOptions;
}

/** Makes the device and starts its queues. */
export async function startBlk(options: BlkSetupOptions): Promise<BlkSetup> {
  const { node, hosts } = options;
  const device = await BlkDevice.create({
    node,
    hosts,
    logger: silentLogger,
    writable: !node.readOnly,
    ...options.device,
  });
  const frontEnd = new FrontEnd(device, options.frontEnd);
  try {
    await frontEnd.activate();
  } catch (error) {
    await frontEnd.close(0);
    throw error;
  }
  return {
    device,
    frontEnd,
    client: new BlkClient(frontEnd),
    async close(timeoutMs): Promise<void> {
      await frontEnd.close(timeoutMs);
      await node.close();
    },
  };
}

export function localNode(device: MemoryDisk, readOnly = false): BlockNode {
  return openLocalNode({ nodeName: 'disk', driver: 'memory-disk', device, readOnly });
}

export function memoryNode(size: number): Promise<BlockNode> {
  return openBlockNode({ driver: 'memory', nodeName: 'memory', size });
}
