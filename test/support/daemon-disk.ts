/** A storage daemon whose exports are real devices on the software VDUSE, with a driver each. */
import assert from 'node:assert/strict';
import { silentLogger } from '../../src/base/log.js';
import type { BlockNode, BlockNodeOptions, ChildOpener } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { createVduseBlkExport } from '../../src/daemon/vduse-export.js';
import type { BlkFrontend } from '../../src/software-vduse/blk-frontend.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { openFdCount } from './resources.js';
import { until } from './within.js';

export interface DaemonDisksOptions {
  /** Opens nodes in place of openBlockNode. */
  readonly open?: (options: BlockNodeOptions, children: ChildOpener) => Promise<BlockNode>;
  readonly threads?: number;
  readonly drainTimeoutMs?: number;
}

export class DaemonDisks {
  readonly daemon: StorageDaemon;
  readonly #bus = new VirtioVdpa();
  readonly #kernel = new SoftwareVduse({ busDriver: this.#bus });
  readonly #hosts: QueueThreadPool;
  readonly #descriptors = openFdCount();

  constructor(options: DaemonDisksOptions = {}) {
    this.#hosts = new QueueThreadPool({ size: options.threads ?? 2 });
    this.daemon = new StorageDaemon({
      openBlockNode: options.open ?? openBlockNode,
      ...(options.drainTimeoutMs === undefined ? {} : { drainTimeoutMs: options.drainTimeoutMs }),
      exportCreators: {
        'vduse-blk': (exportOptions) =>
          createVduseBlkExport(exportOptions, {
            hosts: this.#hosts,
            logger: silentLogger,
            kernel: this.#kernel,
          }),
      },
    });
  }

  /** Exports a node under its own name, and returns the disk that the driver made of it. */
  async export(
    nodeName: string,
    more: { queueCount?: number; writable?: boolean } = {},
  ): Promise<BlkFrontend> {
    const id = `export-${nodeName}`;
    await this.daemon.addExport({ type: 'vduse-blk', id, nodeName, name: nodeName, writable: true, ...more });
    await this.#kernel.addToBus(nodeName);
    const disk = this.#bus.disk(nodeName);
    assert(disk !== undefined);
    return disk as BlkFrontend;
  }

  /** Closes all, which leaves no descriptor open. */
  async close(): Promise<void> {
    await this.daemon.close();
    await this.#hosts.close();
    assert(this.daemon.endedCleanly);
    // What is shared closes a turn later.
    await until('descriptors to be closed', () => openFdCount() <= this.#descriptors);
  }
}
