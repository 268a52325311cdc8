/** The export type `vhost-user-blk`: a block node as a virtio-blk device for virtual machines, on a socket. */
import { VduseError } from '../base/errors.js';
import type { BlkDevice } from '../device/blk/blk-device.js';
import type { DeviceStatistics } from '../device/statistics.js';
import { vringCountMax } from '../transport/vhost-user/protocol.js';
import { type VhostUserAddress, VhostUserTransport } from '../transport/vhost-user/vhost-user-transport.js';
import { BlkExport, type BlkExportContext, createBlkDevice } from './blk-export.js';
import type { BlockExport, VhostUserBlkExportOptions } from './block-export.js';

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

class VhostUserBlkExportImplementation extends BlkExport implements VhostUserBlkExport {
  readonly type = 'vhost-user-blk';
  readonly address: VhostUserAddress;
  readonly #transport: VhostUserTransport;

  constructor(
    options: VhostUserBlkExportOptions,
    parts: { device: BlkDevice; transport: VhostUserTransport },
  ) {
    super(options, parts.device);
    this.address = options.address;
    this.#transport = parts.transport;
  }

  get description(): string {
    return `vhost-user socket ${describeAddress(this.address)}`;
  }

  get connected(): boolean {
    return this.#transport.connected;
  }

  protected override inUse(): VduseError | undefined {
    if (!this.connected) {
      return undefined;
    }
    return new VduseError('BUSY', `export '${this.id}' is still in use: a front-end is connected`, {
      hint: 'End the virtual machine or unplug its disk, or delete the export in mode hard.',
    });
  }

  protected override end(): Promise<void> {
    return this.#transport.close();
  }
}

/** Makes the export. When it throws nothing is left behind; the node stays open and its caller's. */
export async function createVhostUserBlkExport(
  options: VhostUserBlkExportOptions,
  context: BlkExportContext,
): Promise<VhostUserBlkExport> {
  const { id, address, queueCount = 1 } = options;
  if (queueCount > vringCountMax) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `a vhost-user device has at most ${vringCountMax} queues, not ${queueCount}`,
      {
        hint: 'The protocol numbers them in a byte: ask for fewer.',
      },
    );
  }
  const device = await createBlkDevice(options, context);
  const transport = new VhostUserTransport({ device, address, logger: context.logger, name: id });
  return new VhostUserBlkExportImplementation(options, { device, transport });
}
