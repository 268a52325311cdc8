/** A disk from code: one call opens the image, makes the device and attaches it. */
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { VduseError } from '../base/errors.js';
import { type Logger, silentLogger } from '../base/log.js';
import { type BlockSource, isBlockSource } from '../block/define-block-driver.js';
import { openLocalNode } from '../block/drivers/local-node.js';
import type { BlockNode, BlockNodeOptions, BlockServices, FileNodeOptions } from '../block/node.js';
import { openBlockNode } from '../block/open.js';
import type { NamedThread } from '../device/queue-host.js';
import type { DeviceStatistics } from '../device/statistics.js';
import { closeAll } from './close-all.js';
import { toBlockNodeOptions } from './options/blockdev-options.js';
import { filenameOptions } from './options/filename.js';
import { acquireQueueThreads, releaseQueueThreads } from './process-hosts.js';
import { createVduseBlkExport, type VduseBlkExport } from './vduse-export.js';
import { createVhostUserBlkExport, type VhostUserBlkExport } from './vhost-user-export.js';

export interface DiskOptions {
  /** The VDUSE device's name; made of the image's name when absent. */
  readonly name?: string;
  readonly readOnly?: boolean;
  /** Up to 20 bytes, under which udev finds the disk in /dev/disk/by-id; the device's name when absent. */
  readonly serial?: string;
  /** Queues of the device; 1 when absent. More let more cores submit at once. */
  readonly queues?: number;
  /** Elements of each queue, a power of two; 256 when absent. */
  readonly queueSize?: number;
  /** Bytes, 512 to 4096; what the image takes when absent. */
  readonly blockSize?: number;
  /** `virtio`, the default: /dev/vdX. `vhost`: /dev/vhost-vdpa-N, for a virtual machine. False: not on the bus. */
  readonly attach?: 'virtio' | 'vhost' | false;
  /**
   * A socket's path: the disk is for a virtual machine, over vhost-user, instead of VDUSE. No privileges are needed;
   * `attach` and `queueSize` do not count.
   */
  readonly vhostUser?: string;
  /** Threads for the queues, in turn; a pool of one per core when absent. */
  readonly threads?: readonly NamedThread[];
  /** How long a queue's thread may look for requests before it sleeps, microseconds; 0: not at all. See BlkDeviceOptions. */
  readonly pollUs?: number;
  /** Keys and passwords by the names under which the block node's options refer to them (`keySecret`). */
  readonly secrets?: Readonly<Record<string, Uint8Array>>;
  /** Where messages go; nowhere when absent. */
  readonly logger?: Logger;
}

export interface ExportedDisk {
  readonly name: string;
  /** `/dev/vdX`, `/dev/vhost-vdpa-N` or the vhost-user socket; undefined when it is not attached. */
  readonly path: string | undefined;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  readonly statistics: DeviceStatistics;
  /** Resolves when the disk is gone, whatever ended it. */
  readonly closed: Promise<void>;
  /** Changes the size, in bytes; whoever uses the disk sees it at once. */
  resize(size: number): Promise<void>;
  /** Takes the disk away after the requests in flight have ended. */
  close(): Promise<void>;
}

/** What a path stands for: a disk is taken as a disk, everything else as an image file. */
export function fileNodeOptions(filename: string, nodeName: string): FileNodeOptions {
  const isDisk = statSync(filename, { throwIfNoEntry: false })?.isBlockDevice() === true;
  return { driver: isDisk ? 'host_device' : 'file', filename, nodeName, discard: 'unmap' };
}

/** What a filename stands for that is no path, such as a URL; undefined for a path. See filename.ts. */
export function namedNodeOptions(filename: string, nodeName: string): BlockNodeOptions | undefined {
  const options = existsSync(filename) ? undefined : filenameOptions(filename);
  return options === undefined
    ? undefined
    : toBlockNodeOptions({ discard: 'unmap', ...options, 'node-name': nodeName });
}

/** A device name of a path's last part, with what such a name can't have replaced. */
export function deviceNameFor(source: string): string {
  const stem = basename(source).replace(/\.(img|raw|disk)$/i, '');
  const name = stem.replace(/[^\w.-]/g, '-').replace(/^\.+/, '');
  return name === '' || name === 'control' ? `disk-${randomBytes(3).toString('hex')}` : name.slice(0, 64);
}

export interface SourceOptions {
  readonly name?: string;
  readonly readOnly?: boolean;
  /** Keys and passwords by the names under which a block node's options refer to them. */
  readonly secrets?: Readonly<Record<string, Uint8Array>>;
  readonly logger?: Logger;
}

function blockServices(options: SourceOptions): BlockServices {
  const { secrets = {}, logger = silentLogger } = options;
  return {
    secret(id) {
      if (!Object.hasOwn(secrets, id)) {
        throw new VduseError('NOT_FOUND', `there is no secret '${id}'`, {
          hint: 'Give it with the option secrets.',
        });
      }
      return secrets[id];
    },
    logger,
  };
}

/** Opens what a disk is made of, and finds it a name. */
export async function openSource(
  source: string | BlockNodeOptions | BlockSource,
  options: SourceOptions,
): Promise<{ node: BlockNode; name: string }> {
  const readOnly = options.readOnly ?? false;
  if (typeof source === 'string') {
    const name = options.name ?? deviceNameFor(source);
    const nodeOptions = namedNodeOptions(source, name) ?? fileNodeOptions(source, name);
    return { name, node: await openBlockNode({ ...nodeOptions, readOnly }) };
  }
  if (isBlockSource(source)) {
    const driver = source.driverName;
    const name = options.name ?? deviceNameFor(driver);
    const device = await source.openDevice();
    try {
      return { name, node: openLocalNode({ nodeName: name, driver, device, readOnly }) };
    } catch (error) {
      await device.close?.();
      throw error;
    }
  }
  const name = options.name ?? deviceNameFor(source.nodeName);
  const nodeOptions = { ...source, readOnly: source.readOnly ?? readOnly };
  return { name, node: await openBlockNode(nodeOptions, undefined, blockServices(options)) };
}

class Disk implements ExportedDisk {
  readonly name: string;
  readonly #node: BlockNode;
  readonly #export: VduseBlkExport | VhostUserBlkExport;
  readonly closed: Promise<void>;
  #closing: Promise<void> | undefined;

  constructor(name: string, node: BlockNode, blockExport: VduseBlkExport | VhostUserBlkExport) {
    this.name = name;
    this.#node = node;
    this.#export = blockExport;
    this.closed = blockExport.closed;
    node.watch?.({ onResize: () => blockExport.resized() });
  }

  get path(): string | undefined {
    if (this.#export.type === 'vhost-user-blk') {
      return this.#export.address.type === 'unix' ? this.#export.address.path : undefined;
    }
    const { attached } = this.#export;
    return attached?.blockDevice ?? attached?.vhostDevice;
  }

  get size(): number {
    return this.#node.size;
  }

  get readOnly(): boolean {
    return !this.#export.writable;
  }

  get statistics(): DeviceStatistics {
    return this.#export.statistics;
  }

  async resize(size: number): Promise<void> {
    await this.#node.resize(size);
    this.#export.resized();
  }

  close(): Promise<void> {
    this.#closing ??= closeAll([
      () => this.#export.close({ hard: true }),
      () => this.#node.close(),
      releaseQueueThreads,
    ]);
    return this.#closing;
  }
}

function createExport(
  node: BlockNode,
  name: string,
  options: DiskOptions,
): Promise<VduseBlkExport | VhostUserBlkExport> {
  const { queues, queueSize, blockSize, threads, pollUs, vhostUser, attach = 'virtio' } = options;
  const { logger = silentLogger } = options;
  const context = { hosts: acquireQueueThreads(logger), logger };
  const common = {
    id: name,
    node,
    writable: !node.readOnly,
    serial: options.serial ?? name.slice(0, 20),
    ...(queues === undefined ? {} : { queueCount: queues }),
    ...(blockSize === undefined ? {} : { logicalBlockSize: blockSize }),
    ...(threads === undefined ? {} : { threads }),
    ...(pollUs === undefined ? {} : { pollUs }),
  };
  if (vhostUser !== undefined) {
    const address = { type: 'unix', path: vhostUser, server: true } as const;
    return createVhostUserBlkExport({ ...common, address }, context);
  }
  return createVduseBlkExport(
    {
      ...common,
      name,
      ...(queueSize === undefined ? {} : { queueSize }),
      ...(attach === false ? {} : { attach }),
    },
    context,
  );
}

/**
 * Gives a disk to this machine: an image's or disk's path, a block node's options, or a block driver of
 * your own (defineBlockDriver). Needs Linux's VDUSE and its privileges, except over vhost-user. When it throws,
 * nothing is left.
 */
export async function exportDisk(
  source: string | BlockNodeOptions | BlockSource,
  options: DiskOptions = {},
): Promise<ExportedDisk> {
  const { node, name } = await openSource(source, options);
  try {
    return new Disk(name, node, await createExport(node, name, options));
  } catch (error) {
    await closeAll([() => node.close(), releaseQueueThreads]);
    const isDerived = options.name === undefined && options.vhostUser === undefined;
    if (error instanceof VduseError && error.code === 'ALREADY_EXISTS' && isDerived) {
      throw new VduseError('ALREADY_EXISTS', error.message, {
        cause: error,
        hint: "The name was made of the image's; give one of your own.",
      });
    }
    throw error;
  }
}
