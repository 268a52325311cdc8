/** The export type `vhost-user-blk`: a block node as a virtio-blk device for virtual machines, on a socket. */
import { VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { BlkDevice } from '../device/blk/blk-device.js';
import type { QueueHosts } from '../device/queue-host.js';
import type { DeviceStatistics, SharedDeviceState } from '../device/statistics.js';
import { type VhostUserAddress, VhostUserTransport } from '../transport/vhost-user/vhost-user-transport.js';
import type { BlockExport, VhostUserBlkExportOptions } from './block-export.js';

export interface VhostUserExportContext {
  readonly hosts: QueueHosts;
  readonly logger: Logger;
}

export interface VhostUserBlkExport extends BlockExport {
  readonly type: 'vhost-user-blk';
  readonly address: VhostUserAddress;
  readonly queueCount: number;
  readonly queueSize: number;
  /** Whether a front-end is connected. */
  readonly connected: boolean;
  readonly statistics: DeviceStatistics;
}

function describeAddress(address: VhostUserAddress): string {
  return address.type === 'unix' ? address.path : `descriptor ${address.fd}`;
}

class VhostUserBlkExportImplementation implements VhostUserBlkExport {
  readonly type = 'vhost-user-blk';
  readonly id: string;
  readonly node;
  readonly writable: boolean;
  readonly address: VhostUserAddress;
  readonly closed: Promise<void>;
  readonly #device: BlkDevice;
  readonly #transport: VhostUserTransport;
  #closing: Promise<void> | undefined;
  #resolveClosed: () => void = () => {};

  constructor(
    options: VhostUserBlkExportOptions,
    parts: { device: BlkDevice; transport: VhostUserTransport },
  ) {
    this.id = options.id;
    this.node = options.node;
    this.address = options.address;
    this.writable = !parts.device.readOnly;
    this.#device = parts.device;
    this.#transport = parts.transport;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  get description(): string {
    return `vhost-user socket ${describeAddress(this.address)}`;
  }

  get queueCount(): number {
    return this.#device.queueCount;
  }

  get queueSize(): number {
    return this.#device.queueSizeMax;
  }

  get connected(): boolean {
    return this.#transport.connected;
  }

  get counters(): SharedDeviceState {
    return this.#device.counters;
  }

  get statistics(): DeviceStatistics {
    return this.#device.statistics;
  }

  get shuttingDown(): boolean {
    return this.#closing !== undefined;
  }

  resized(): void {
    this.#device.resized();
  }

  drained(change: () => Promise<void>): Promise<void> {
    return this.#device.drained(change);
  }

  close(options: { readonly hard: boolean }): Promise<void> {
    if (this.#closing === undefined && this.connected && !options.hard) {
      return Promise.reject(
        new VduseError('BUSY', `export '${this.id}' is still in use: a front-end is connected`, {
          hint: 'End the virtual machine or unplug its disk, or delete the export in mode hard.',
        }),
      );
    }
    this.#closing ??= this.#transport.close().finally(this.#resolveClosed);
    return this.#closing;
  }
}

/** Makes the export. When it throws nothing is left behind; the node stays open and its caller's. */
export async function createVhostUserBlkExport(
  options: VhostUserBlkExportOptions,
  context: VhostUserExportContext,
): Promise<VhostUserBlkExport> {
  if (options.writable && options.node.readOnly) {
    throw new VduseError('IMAGE_READ_ONLY', `block node '${options.node.nodeName}' is read-only`, {
      hint: 'Open the node writable, or export it with writable=off.',
    });
  }
  const { id, node, writable, address, queueCount, logicalBlockSize, serial, threads, pollUs } = options;
  const { hosts, logger } = context;
  const device = await BlkDevice.create({
    node,
    hosts,
    logger,
    writable,
    serial: serial ?? id.slice(0, 20),
    ...(queueCount === undefined ? {} : { queueCount }),
    ...(logicalBlockSize === undefined ? {} : { logicalBlockSize }),
    ...(threads === undefined ? {} : { threads }),
    ...(pollUs === undefined ? {} : { pollUs }),
  });
  const transport = new VhostUserTransport({ device, address, logger, name: id });
  return new VhostUserBlkExportImplementation(options, { device, transport });
}
