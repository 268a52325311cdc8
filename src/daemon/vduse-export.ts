/** The export type `vduse-blk`: a block node as a virtio-blk device on VDUSE. */
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { BlkDevice } from '../device/blk/blk-device.js';
import type { QueueHosts } from '../device/queue-host.js';
import type { DeviceStatistics, SharedDeviceState } from '../device/statistics.js';
import { vduseDeviceHolders } from '../native/vdpa-bus.js';
import type { VduseKernel } from '../native/vduse-kernel.js';
import { type AttachedDevice, attachDevice } from '../transport/vduse/attach.js';
import { VduseTransport } from '../transport/vduse/vduse-transport.js';
import type { BlockExport, VduseBlkExportOptions } from './block-export.js';
import { closeAll } from './close-all.js';

export interface ExportContext {
  readonly hosts: QueueHosts;
  readonly logger: Logger;
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

class VduseBlkExportImplementation implements VduseBlkExport {
  readonly type = 'vduse-blk';
  readonly id: string;
  readonly node;
  readonly writable: boolean;
  readonly closed: Promise<void>;
  readonly #device: BlkDevice;
  readonly #transport: VduseTransport;
  readonly #logger: Logger;
  #attached: AttachedDevice | undefined;
  #closing: Promise<void> | undefined;
  #resolveClosed: () => void = () => {};

  constructor(
    options: VduseBlkExportOptions,
    parts: { device: BlkDevice; transport: VduseTransport; logger: Logger },
  ) {
    this.id = options.id;
    this.node = options.node;
    this.writable = !parts.device.readOnly;
    this.#device = parts.device;
    this.#transport = parts.transport;
    this.#logger = parts.logger;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
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

  get queueCount(): number {
    return this.#device.queueCount;
  }

  get queueSize(): number {
    return this.#device.queueSizeMax;
  }

  get serial(): string {
    return this.#device.serial;
  }

  get attached(): AttachedDevice | undefined {
    return this.#attached;
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

  close(options: { readonly hard: boolean }): Promise<void> {
    if (this.#closing !== undefined) {
      return this.#closing;
    }
    const onBus = this.#transport.isOnBus;
    if (onBus && this.#attached === undefined && !options.hard) {
      return Promise.reject(
        new VduseError(
          'BUSY',
          `export '${this.id}' is still in use: '${this.deviceName}' is on the vDPA bus`,
          {
            hint: `Take it off first (vdpa dev del ${this.deviceName}), or delete the export in mode hard.`,
          },
        ),
      );
    }
    this.#closing = this.#close(onBus);
    return this.#closing;
  }

  async #close(onBus: boolean): Promise<void> {
    try {
      await closeAll([
        () => (onBus ? this.#transport.detach() : Promise.resolve()),
        () => this.#transport.close(),
      ]);
    } finally {
      this.#resolveClosed();
    }
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
  if (options.writable && options.node.readOnly) {
    throw new VduseError('IMAGE_READ_ONLY', `block node '${options.node.nodeName}' is read-only`, {
      hint: 'Open the node writable, or export it with writable=off.',
    });
  }
  const { node, writable, queueCount, queueSize, logicalBlockSize, serial, threads, pollUs } = options;
  const device = await BlkDevice.create({
    node,
    hosts: context.hosts,
    logger: context.logger,
    writable,
    // As QEMU does, so that a disk is found under /dev/disk/by-id by its export's name.
    serial: serial ?? options.id.slice(0, 20),
    ...(queueCount === undefined ? {} : { queueCount }),
    ...(queueSize === undefined ? {} : { queueSize }),
    ...(logicalBlockSize === undefined ? {} : { logicalBlockSize }),
    ...(threads === undefined ? {} : { threads }),
    ...(pollUs === undefined ? {} : { pollUs }),
  });
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
