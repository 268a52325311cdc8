/** A software disk from code: one call opens the image and puts the device and the software driver before it. */
import { type Logger, silentLogger } from '../base/log.js';
import type { BlockSource } from '../block/define-block-driver.js';
import type { BlockNodeOptions } from '../block/node.js';
import type { DeviceStatistics } from '../device/statistics.js';
import type { NbdAddress } from '../nbd/nbd-server.js';
import type { BlkFrontend } from '../software-vduse/blk-frontend.js';
import type { VduseTrace } from '../software-vduse/trace.js';
import { closeAll } from './close-all.js';
import { openSource } from './export-disk.js';
import { acquireQueueThreads, releaseQueueThreads } from './process-hosts.js';
import { SoftwareDisk } from './software-disk.js';

export interface SoftwareDiskSettings {
  /** The device's name; made of the image's name when absent. */
  readonly name?: string;
  readonly readOnly?: boolean;
  /**
   * Queues of the device; 1 when absent. One queue is run on the calling thread, whose promises then wait for no other
   * thread: mostly faster than several, which have threads of their own.
   */
  readonly queues?: number;
  /** Elements of each queue, a power of two; 256 when absent. */
  readonly queueSize?: number;
  /** Bytes of the bounce region, in pages; 64 MiB when absent. */
  readonly bounceBytes?: number;
  /** Told of every control message and every change of the memory map. */
  readonly trace?: VduseTrace;
  readonly logger?: Logger;
  /** Keys and passwords by the names under which the block node's options refer to them (`keySecret`). */
  readonly secrets?: Readonly<Record<string, Uint8Array>>;
}

export interface NbdSettings {
  /** Where to listen: `unix` socket files (mode 0600), or `tcp` ports on this machine. */
  readonly address: NbdAddress;
  /** The name that clients ask for; the empty one, the default, is for those who ask for none. */
  readonly exportName?: string;
  /** Payload goes through the bounce region instead of lying in memory that is mapped as it is. */
  readonly bounce?: boolean;
}

export interface OpenedSoftwareDisk {
  readonly name: string;
  /** The disk: reads, writes, flushes and so on as promises, run by the virtio-blk device. */
  readonly disk: BlkFrontend;
  readonly statistics: DeviceStatistics;
  /** Serves the disk to programs that speak NBD. Returns the address, with the port that was found for 0. */
  serveNbd(settings: NbdSettings): Promise<NbdAddress>;
  /** Changes the size in bytes; the disk is told. */
  resize(size: number): Promise<void>;
  /** Ends everything, after the requests in flight. */
  close(): Promise<void>;
}

/**
 * Makes a disk without the kernel and without privileges: the real device and transport, with the software
 * driver in the kernel's place. When it throws, nothing is left.
 */
export async function openSoftwareDisk(
  source: string | BlockNodeOptions | BlockSource,
  settings: SoftwareDiskSettings = {},
): Promise<OpenedSoftwareDisk> {
  const { node, name } = await openSource(source, settings);
  const { queues, queueSize, bounceBytes, trace, logger = silentLogger } = settings;
  const hosts = acquireQueueThreads(logger);
  try {
    const softwareDisk = await SoftwareDisk.create(
      {
        id: name,
        name,
        node,
        writable: !node.readOnly,
        ...(queues === undefined ? {} : { queueCount: queues }),
        ...(queueSize === undefined ? {} : { queueSize }),
        ...(bounceBytes === undefined ? {} : { bounceBytes }),
        ...(trace === undefined ? {} : { trace }),
      },
      { hosts, logger },
    );
    node.watch?.({ onResize: () => softwareDisk.blockExport.resized() });
    let closing: Promise<void> | undefined;
    return {
      name,
      disk: softwareDisk.disk,
      get statistics() {
        return softwareDisk.blockExport.statistics;
      },
      serveNbd: async ({ address, exportName = '', bounce = false }) => {
        const [bound] = await softwareDisk.serveNbd({ addresses: [address], exportName, zeroCopy: !bounce });
        return bound;
      },
      resize: async (size) => {
        await node.resize(size);
        softwareDisk.blockExport.resized();
      },
      close: () => {
        closing ??= closeAll([() => softwareDisk.close(), () => node.close(), releaseQueueThreads]);
        return closing;
      },
    };
  } catch (error) {
    await closeAll([() => node.close(), releaseQueueThreads]);
    throw error;
  }
}
