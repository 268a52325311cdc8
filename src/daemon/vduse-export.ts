/** The export type `vduse-blk`: a block node as a virtio-blk device on VDUSE. */
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { BlkDevice } from '../device/blk/blk-device.js';
import type { DeviceStatistics } from '../device/statistics.js';
import { vduseDeviceHolders } from '../native/vdpa-bus.js';
import type { VduseKernel } from '../native/vduse-kernel.js';
import { type AttachedDevice, attachDevice } from '../transport/vduse/attach.js';
import { VduseTransport } from '../transport/vduse/vduse-transport.js';
import { BlkExport, type BlkExportContext, createBlkDevice } from './blk-export.js';
import type { BlockExport, VduseBlkExportOptions } from './block-export.js';
import { closeAll } from './close-all.js';

export interface ExportContext extends BlkExportContext {
  /** Linux's VDUSE when absent. */
  readonly kernel?: VduseKernel;
}

export interface VduseBlkExport extends BlockExport {
  readonly type: 'vduse-blk';
  readonly deviceName: string;
  readonly queueCount: number;
  readonly queueSize: number;
  readonly serial: string;
  /** Where the device appeared, if this export attached it. */
  readonly attached: AttachedDevice | undefined;
  readonly statistics: DeviceStatistics;
}

class VduseBlkExportImplementation extends BlkExport implements VduseBlkExport {
  readonly type = 'vduse-blk';
  readonly #transport: VduseTransport;
  readonly #logger: Logger;
  #attached: AttachedDevice | undefined;

  constructor(
    options: VduseBlkExportOptions,
    parts: { device: BlkDevice; transport: VduseTransport; logger: Logger },
  ) {
    super(options, parts.device);
    this.#transport = parts.transport;
    this.#logger = parts.logger;
    this.#transport.failed.catch((error: unknown) => {
      this.#logger.fatal(
        { export: this.id },
        `'${this.id}' can't be served any more: ${errorMessage(error)}`,
      );
      // What runs ends and what is mapped goes, as far as the driver still lets it.
      this.close({ hard: true }).catch((closing: unknown) => {
        this.#logger.error({ export: this.id }, errorMessage(closing));
      });
    });
  }

  get description(): string {
    return `VDUSE device ${this.deviceName}`;
  }

  get deviceName(): string {
    return this.#transport.name;
  }

  get attached(): AttachedDevice | undefined {
    return this.#attached;
  }

  async attach(binding: 'virtio' | 'vhost'): Promise<void> {
    const attached = await attachDevice(this.#transport, binding);
    if (attached.blockDevice === undefined && attached.vhostDevice === undefined) {
      throw new VduseError(
        'ATTACH_FAILED',
        `'${this.deviceName}' is on the vDPA bus, but no disk came of it`,
        {
          hint: 'Load the disk driver: modprobe virtio_blk. The kernel log (dmesg) tells more.',
        },
      );
    }
    this.#attached = attached;
  }

  protected override inUse(): VduseError | undefined {
    if (!this.#transport.isOnBus || this.#attached !== undefined) {
      return undefined;
    }
    return new VduseError(
      'BUSY',
      `export '${this.id}' is still in use: '${this.deviceName}' is on the vDPA bus`,
      {
        hint: `Take it off first (vdpa dev del ${this.deviceName}), or delete the export in mode hard.`,
      },
    );
  }

  protected override end(): Promise<void> {
    const onBus = this.#transport.isOnBus;
    return closeAll([
      () => (onBus ? this.#transport.detach() : Promise.resolve()),
      () => this.#transport.close(),
    ]);
  }
}

/** What stands in the way when a name is taken: a live server, or a device whose process is gone. */
function nameTaken(name: string, cause: unknown): VduseError {
  const { processes } = vduseDeviceHolders(name);
  const holder = processes[0];
  if (holder !== undefined) {
    return new VduseError(
      'ALREADY_EXISTS',
      `the VDUSE device name '${name}' is taken: process ${holder.pid} (${holder.command}) serves it`,
      { cause, hint: 'Choose another name (--name), or end that process.' },
    );
  }
  return new VduseError(
    'DEVICE_LEFT_BEHIND',
    `the VDUSE device name '${name}' is taken by a device that a dead process left behind`,
    { cause, hint: `Remove it (vduse remove ${name}), or choose another name.` },
  );
}

async function createTransport(
  options: VduseBlkExportOptions,
  device: BlkDevice,
  context: ExportContext,
): Promise<VduseTransport> {
  const { kernel } = context;
  try {
    return await VduseTransport.create({
      name: options.name,
      device,
      logger: context.logger,
      ...(options.irqCpus === undefined ? {} : { irqCpus: options.irqCpus }),
      ...(kernel === undefined ? {} : { kernel }),
    });
  } catch (error) {
    if (error instanceof VduseError && error.code === 'ALREADY_EXISTS') {
      throw nameTaken(options.name, error);
    }
    throw error;
  }
}

/** Makes the export. When it throws nothing is left behind; the node stays open and its caller's. */
export async function createVduseBlkExport(
  options: VduseBlkExportOptions,
  context: ExportContext,
): Promise<VduseBlkExport> {
  const device = await createBlkDevice(options, context);
  const transport = await createTransport(options, device, context);
  const created = new VduseBlkExportImplementation(options, { device, transport, logger: context.logger });
  if (options.attach !== undefined) {
    try {
      await created.attach(options.attach);
    } catch (error) {
      await created.close({ hard: true });
      throw error;
    }
  }
  return created;
}
