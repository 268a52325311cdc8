/**
 * A disk without the kernel: a block node behind the real virtio-blk device and VDUSE transport, the software
 * driver in the kernel's place, and NBD as the way in for programs that exist. Needs no privileges.
 */
import type { Logger } from '../base/log.js';
import type { BlockNode } from '../block/node.js';
import type { QueueHosts } from '../device/queue-host.js';
import { type NbdAddress, NbdServer } from '../nbd/nbd-server.js';
import type { BlkFrontend } from '../software-vduse/blk-frontend.js';
import { SoftwareVduse } from '../software-vduse/software-vduse.js';
import type { VduseTrace } from '../software-vduse/trace.js';
import { VirtioVdpa } from '../software-vduse/virtio-vdpa.js';
import type { VduseBlkExportOptions } from './block-export.js';
import { closeAll } from './close-all.js';
import { FrontendNbdExport } from './frontend-nbd-export.js';
import { SharedThreadHost } from './shared-thread-host.js';
import { createVduseBlkExport, type VduseBlkExport } from './vduse-export.js';

export interface SoftwareDiskOptions extends Omit<VduseBlkExportOptions, 'attach'> {
  /** Bytes of the bounce region; 64 MiB when absent. */
  readonly bounceBytes?: number;
  /** Told of every control message and every change of the memory map. */
  readonly trace?: VduseTrace;
}

export interface SoftwareDiskContext {
  readonly hosts: QueueHosts;
  readonly logger: Logger;
}

export interface NbdServiceOptions {
  readonly addresses: readonly NbdAddress[];
  /** The export's name; clients that give none get it too when it is the empty one. */
  readonly exportName: string;
  readonly description?: string;
  /** Payload is mapped, not bounced; see FrontendNbdOptions. */
  readonly zeroCopy: boolean;
}

/** Longer than a client on this machine takes from a reply to its next request, and far too short to notice. */
const clientPollUs = 100;

export class SoftwareDisk {
  /** The disk that the software driver made: requests with promises. */
  readonly disk: BlkFrontend;
  readonly blockExport: VduseBlkExport;
  readonly #logger: Logger;
  readonly #services: { server: NbdServer; nbdExport: FrontendNbdExport }[] = [];
  #closing: Promise<void> | undefined;

  /** Makes the disk; the node stays its caller's. When it throws, nothing is left. */
  static async create(options: SoftwareDiskOptions, context: SoftwareDiskContext): Promise<SoftwareDisk> {
    const { bounceBytes, trace, ...exportOptions } = options;
    // A front-end has one thread. A device with one queue is there too; several queues are worth threads.
    const isShared = (options.queueCount ?? 1) === 1 && options.threads === undefined;
    const host = isShared ? new SharedThreadHost() : undefined;
    const bus = new VirtioVdpa(host === undefined ? {} : { loop: host });
    const kernel = new SoftwareVduse({
      busDriver: bus,
      ...(bounceBytes === undefined ? {} : { bounceBytes }),
      ...(trace === undefined ? {} : { trace }),
    });
    const blockExport = await createVduseBlkExport(exportOptions, {
      ...context,
      kernel,
      hosts: host ?? context.hosts,
    });
    try {
      await kernel.addToBus(options.name);
    } catch (error) {
      await blockExport.close({ hard: true });
      throw error;
    }
    return new SoftwareDisk(bus.disk(options.name) as BlkFrontend, blockExport, context.logger);
  }

  private constructor(disk: BlkFrontend, blockExport: VduseBlkExport, logger: Logger) {
    this.disk = disk;
    this.blockExport = blockExport;
    this.#logger = logger;
  }

  get node(): BlockNode {
    return this.blockExport.node;
  }

  /** Serves the disk as NBD. Returns the addresses, with the ports that were found. */
  async serveNbd(options: NbdServiceOptions): Promise<NbdAddress[]> {
    const nbdExport = new FrontendNbdExport(this.disk, { zeroCopy: options.zeroCopy });
    const server = new NbdServer({ logger: this.#logger, pollUs: clientPollUs });
    this.#services.push({ server, nbdExport });
    const { exportName: name, description } = options;
    server.addExport({ name, target: nbdExport, ...(description === undefined ? {} : { description }) });
    const bound: NbdAddress[] = [];
    for (const address of options.addresses) {
      bound.push(await server.listen(address));
    }
    return bound;
  }

  /** Ends the NBD servers, the disk and the device, in this order: requests in flight end first. */
  close(): Promise<void> {
    this.#closing ??= closeAll([
      ...this.#services.flatMap(({ server, nbdExport }) => [() => server.close(), () => nbdExport.close()]),
      () => this.blockExport.close({ hard: true }),
    ]);
    return this.#closing;
  }
}
