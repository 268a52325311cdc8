/** What the export types with a virtio-blk device have in common: its life, its counters, and how the device is made. */
import { VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { BlockNode } from '../block/node.js';
import { BlkDevice } from '../device/blk/blk-device.js';
import type { QueueHosts } from '../device/queue-host.js';
import type { DeviceStatistics, SharedDeviceState } from '../device/statistics.js';
import type { BlockExport, BlockExportOptions } from './block-export.js';

export interface BlkExportContext {
  readonly hosts: QueueHosts;
  readonly logger: Logger;
}

export interface BlkExportOptions extends BlockExportOptions {
  readonly queueCount?: number;
  readonly queueSize?: number;
  readonly logicalBlockSize?: number;
  readonly serial?: string;
}

/** Throws IMAGE_READ_ONLY, and what the device throws. */
export function createBlkDevice(
  options: BlkExportOptions,
  { hosts, logger }: BlkExportContext,
): Promise<BlkDevice> {
  const { id, node, writable, queueCount, queueSize, logicalBlockSize, serial, threads, pollUs, onIoError } =
    options;
  if (writable && node.readOnly) {
    throw new VduseError('IMAGE_READ_ONLY', `block node '${node.nodeName}' is read-only`, {
      hint: 'Open the node writable, or export it with writable=off.',
    });
  }
  return BlkDevice.create({
    node,
    hosts,
    logger,
    writable,
    // As QEMU does, so that a disk is found under /dev/disk/by-id by its export's name.
    serial: serial ?? id.slice(0, 20),
    ...(queueCount === undefined ? {} : { queueCount }),
    ...(queueSize === undefined ? {} : { queueSize }),
    ...(logicalBlockSize === undefined ? {} : { logicalBlockSize }),
    ...(threads === undefined ? {} : { threads }),
    ...(pollUs === undefined ? {} : { pollUs }),
    ...(onIoError === undefined ? {} : { onIoError }),
  });
}

export abstract class BlkExport implements BlockExport {
  abstract readonly type: string;
  abstract readonly description: string;
  readonly id: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly closed: Promise<void>;
  readonly #device: BlkDevice;
  #closing: Promise<void> | undefined;
  #resolveClosed: () => void = () => {};

  constructor({ id, node }: BlockExportOptions, device: BlkDevice) {
    this.id = id;
    this.node = node;
    this.writable = !device.readOnly;
    this.#device = device;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
  }

  /** Why the export can't end other than hard, if a front-end uses it. */
  protected abstract inUse(): VduseError | undefined;

  /** Ends what front-ends see of it. */
  protected abstract end(): Promise<void>;

  get queueCount(): number {
    return this.#device.queueCount;
  }

  get queueSize(): number {
    return this.#device.queueSizeMax;
  }

  get serial(): string {
    return this.#device.serial;
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

  drained(change: () => Promise<void>, timeoutMs?: number): Promise<void> {
    return this.#device.drained(change, timeoutMs);
  }

  close({ hard }: { readonly hard: boolean }): Promise<void> {
    const reason = this.#closing === undefined && !hard ? this.inUse() : undefined;
    if (reason !== undefined) {
      return Promise.reject(reason);
    }
    this.#closing ??= this.end().finally(this.#resolveClosed);
    return this.#closing;
  }
}
