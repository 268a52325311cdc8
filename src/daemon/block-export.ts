/** An export: one way out for a block node. Its type-specific options are its creator's business. */
import { VduseError } from '../base/errors.js';
import type { BlockNode } from '../block/node.js';
import type { IoError, NamedThread } from '../device/queue-host.js';
import type { DeviceStatistics, SharedDeviceState } from '../device/statistics.js';
import type { VhostUserAddress } from '../transport/vhost-user/vhost-user-transport.js';

export interface BlockExport {
  readonly id: string;
  /** QEMU's name of the export type, such as `vduse-blk`. */
  readonly type: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  /** Where front-ends find it, for log lines, such as `VDUSE device disk0`. */
  readonly description: string;
  readonly shuttingDown: boolean;
  /** What its front-ends have asked for so far; absent where nobody counts. */
  readonly statistics?: DeviceStatistics;
  /** Where that is counted, and how long it took if somebody asked for that. */
  readonly counters?: SharedDeviceState;
  /** Settles when the export has ended, whatever ended it. Never rejects. */
  readonly closed: Promise<void>;
  /** Tells the front-end that the node's size is another one. */
  resized(): void;
  /**
   * Lets what is in flight end, runs `change` while nothing moves, and goes on with the engine that the node has
   * then, also when the change fails. Throws TIMEOUT when requests last longer than that: then nothing was changed.
   */
  drained(change: () => Promise<void>, timeoutMs?: number): Promise<void>;
  /**
   * Ends the export. Not hard: throws BUSY while a front-end uses it, as QEMU does. Hard: requests in
   * flight end, the front-end loses its device.
   */
  close(options: { readonly hard: boolean }): Promise<void>;
}

/** What all export types have. */
export interface BlockExportOptions {
  readonly id: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  /** Told of requests that failed, at most once a second of each queue. */
  readonly onIoError?: (error: IoError) => void;
  /** Threads for the queues, in turn; the default spreads queues over the process's pool. */
  readonly threads?: readonly NamedThread[];
  /** How long a queue's thread may look for requests before it sleeps, microseconds; 0: not at all. See BlkDeviceOptions. */
  readonly pollUs?: number;
}

export interface VduseBlkExportOptions extends BlockExportOptions {
  /** The VDUSE device name: /dev/vduse/NAME. */
  readonly name: string;
  readonly queueCount?: number;
  readonly queueSize?: number;
  readonly logicalBlockSize?: number;
  readonly serial?: string;
  /** The processors that the queues' interrupts are taken on; the kernel's own choice when absent. */
  readonly irqCpus?: readonly number[];
  /** Adds the device to the vDPA bus, as `vdpa dev add` does, and binds that driver; absent: the user does. */
  readonly attach?: 'virtio' | 'vhost';
}

export interface NbdExportOptions extends BlockExportOptions {
  /** What NBD clients ask for; the node's name when absent. */
  readonly name?: string;
  /** Shown to people who list exports. */
  readonly description?: string;
  /** Dirty bitmaps to be told of, by name. */
  readonly bitmaps?: readonly string[];
}

export interface VhostUserBlkExportOptions extends BlockExportOptions {
  readonly address: VhostUserAddress;
  readonly queueCount?: number;
  readonly logicalBlockSize?: number;
  readonly serial?: string;
}

/** The export types there are, each with what it is made of. */
export interface ExportOptionsByType {
  readonly 'vduse-blk': VduseBlkExportOptions;
  readonly nbd: NbdExportOptions;
  readonly 'vhost-user-blk': VhostUserBlkExportOptions;
}

export type ExportType = keyof ExportOptionsByType;

/** An export to be made; the node and the threads still by name. */
export type ExportRequestOf<Type extends ExportType> = Omit<
  ExportOptionsByType[Type],
  keyof Pick<BlockExportOptions, 'node' | 'writable' | 'threads' | 'onIoError'>
> & {
  readonly type: Type;
  readonly nodeName: string;
  readonly writable?: boolean;
  /** Iothread objects, in the order in which queues are dealt to them. */
  readonly iothreads?: readonly string[];
};

export type ExportRequest = { [Type in ExportType]: ExportRequestOf<Type> }[ExportType];

/** Makes exports, by type. A daemon need not have all types. */
export type ExportCreators = {
  readonly [Type in ExportType]?: (options: ExportOptionsByType[Type]) => Promise<BlockExport>;
};

/** Makes an export of whatever type its request has. */
export function createExport<Type extends ExportType>(
  creators: ExportCreators,
  type: Type,
  options: ExportOptionsByType[Type],
): Promise<BlockExport> {
  const create = creators[type];
  if (create === undefined) {
    throw new VduseError('NOT_SUPPORTED', `exports of type '${type}' can't be made here`);
  }
  return create(options);
}
