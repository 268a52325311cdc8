/** The block drivers `file` and `host_device`, and `memory`, which is a file that has no name. */
import { fstatSync, ftruncateSync, type Stats } from 'node:fs';
import { SystemCallError, VduseError } from '../../base/errors.js';
import { Errno } from '../../native/errno.js';
import { blockDeviceGeometry, closeFd, directIoAlignment, OpenFlag, openFile } from '../../native/fd.js';
import { systemCallError } from '../../native/ffi.js';
import { createMemoryFile } from '../../native/memory.js';
import type { FileEngineSpec } from '../engine.js';
import type {
  BlockFeatures,
  BlockLimits,
  BlockNode,
  BlockNodeOptions,
  FileNodeOptions,
  MemoryNodeOptions,
  ReopenedNode,
} from '../node.js';
import { beginLockHandover, lockImage } from './image-lock.js';

/** Virtio 5.2.4: capacities are counted in sectors of 512 bytes, whatever the block size. */
const sectorBytes = 512;
/** Where nobody says what O_DIRECT wants of memory, a page is always right. */
const cautiousMemoryAlignment = 4096;

interface OpenedFile {
  readonly fd: number;
  readonly readOnly: boolean;
  readonly stats: Stats;
}

function openError(options: FileNodeOptions, error: SystemCallError): VduseError {
  const what = `cannot open '${options.filename}': ${error.message.replace(/^[^:]*: /, '')}`;
  switch (error.errno) {
    case Errno.ENOENT:
      return new VduseError('NOT_FOUND', what, {
        cause: error,
        hint: `Check the path, or make an image: vduse create ${options.filename} 10G`,
      });
    case Errno.EACCES:
    case Errno.EPERM:
    case Errno.EROFS:
      return new VduseError('PERMISSION_DENIED', what, {
        cause: error,
        hint: 'Run as the user who owns the image, or export it read-only (--read-only).',
      });
    case Errno.EINVAL:
      return new VduseError('NOT_SUPPORTED', `${what}; its file system may not support O_DIRECT`, {
        cause: error,
        hint: 'Open it without cache.direct=on.',
      });
    default:
      return new VduseError('SYSTEM_CALL', what, { cause: error });
  }
}

function openOnce(options: FileNodeOptions, readOnly: boolean): OpenedFile {
  const direct = options.cache?.direct === true ? OpenFlag.O_DIRECT : 0;
  // O_NONBLOCK: opening a FIFO by mistake must not wait for its writer. It means nothing to files and disks.
  const flags = (readOnly ? OpenFlag.O_RDONLY : OpenFlag.O_RDWR) | direct | OpenFlag.O_NONBLOCK;
  const fd = openFile(options.filename, flags);
  try {
    const stats = fstatSync(fd);
    // A disk that is set read-only may be opened for writing all the same; then each write would fail.
    if (!readOnly && stats.isBlockDevice() && blockDeviceGeometry(fd).readOnly) {
      throw systemCallError('open', Errno.EROFS, options.filename);
    }
    return { fd, readOnly, stats };
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}

function isSystemError(error: unknown, ...errnos: number[]): error is SystemCallError {
  return error instanceof SystemCallError && errnos.includes(error.errno);
}

function isDirectory(error: unknown): boolean {
  return error instanceof SystemCallError && error.errnoName === 'EISDIR';
}

function openWithFallback(options: FileNodeOptions): OpenedFile {
  const readOnly = options.readOnly ?? false;
  try {
    return openOnce(options, readOnly);
  } catch (error) {
    const denied = isSystemError(error, Errno.EACCES, Errno.EPERM, Errno.EROFS);
    if (!readOnly && options.autoReadOnly === true && denied) {
      return openWithFallback({ ...options, readOnly: true });
    }
    if (isDirectory(error)) {
      throw new VduseError(
        'IMAGE_INVALID',
        `cannot open '${options.filename}': it is a directory, not an image`,
      );
    }
    throw error instanceof SystemCallError ? openError(options, error) : error;
  }
}

function checkType(options: FileNodeOptions, stats: Stats): void {
  if (stats.isDirectory()) {
    throw new VduseError(
      'IMAGE_INVALID',
      `cannot open '${options.filename}': it is a directory, not an image`,
    );
  }
  if (options.driver === 'file' && !stats.isFile()) {
    throw new VduseError(
      'IMAGE_INVALID',
      `'file' driver requires '${options.filename}' to be a regular file`,
      {
        hint: stats.isBlockDevice()
          ? 'For a block device use driver=host_device.'
          : 'Give the path of a disk image.',
      },
    );
  }
  if (options.driver === 'host_device' && !stats.isBlockDevice()) {
    throw new VduseError(
      'IMAGE_INVALID',
      `'host_device' driver requires '${options.filename}' to be a block device`,
      {
        hint: stats.isFile()
          ? 'For a regular file use driver=file.'
          : 'Give the path of a disk, such as /dev/sdb.',
      },
    );
  }
}

function checkSize(filename: string, size: number): void {
  if (size % sectorBytes !== 0) {
    const next = Math.ceil(size / sectorBytes) * sectorBytes;
    throw new VduseError(
      'IMAGE_INVALID',
      `cannot use '${filename}': its size of ${size} bytes is not a multiple of ${sectorBytes}`,
      { hint: `Grow it to whole sectors: truncate -s ${next} ${filename}` },
    );
  }
}

interface Geometry {
  readonly size: number;
  readonly limits: BlockLimits;
  readonly memoryAlignment: number;
}

function geometry(file: OpenedFile, direct: boolean): Geometry {
  const alignment = direct ? directIoAlignment(file.fd) : undefined;
  const memoryAlignment = direct ? (alignment?.memory ?? cautiousMemoryAlignment) : 1;
  if (file.stats.isBlockDevice()) {
    const device = blockDeviceGeometry(file.fd);
    return {
      size: device.size,
      memoryAlignment: direct ? Math.max(memoryAlignment, alignment?.memory ?? device.logicalBlockSize) : 1,
      limits: {
        requestAlignment: device.logicalBlockSize,
        physicalBlockSize: device.physicalBlockSize,
        optimalIoSize: device.optimalIoSize,
        discardAlignment: device.logicalBlockSize,
      },
    };
  }
  return {
    size: file.stats.size,
    memoryAlignment,
    limits: {
      requestAlignment: direct
        ? Math.max(sectorBytes, alignment?.offset ?? cautiousMemoryAlignment)
        : sectorBytes,
      // What the file system allocates: smaller writes make it read and merge.
      physicalBlockSize: 4096,
      optimalIoSize: 0,
      discardAlignment: 4096,
    },
  };
}

class FileNode implements BlockNode {
  readonly nodeName: string;
  readonly driver: string;
  readonly filename: string | undefined;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly detectZeroes;
  readonly features: BlockFeatures;
  readonly limits: BlockLimits;
  readonly engine: FileEngineSpec;
  readonly #options: FileNodeOptions | MemoryNodeOptions;
  readonly #isBlockDevice: boolean;
  #size: number;
  #closed = false;

  constructor(options: FileNodeOptions | MemoryNodeOptions, file: OpenedFile) {
    const direct = options.cache?.direct === true && options.driver !== 'memory';
    const known = geometry(file, direct);
    checkSize(options.driver === 'memory' ? 'memory' : options.filename, known.size);
    const unmap = options.driver === 'memory' ? options.discard !== 'ignore' : options.discard === 'unmap';
    this.nodeName = options.nodeName;
    this.driver = options.driver;
    this.filename = options.driver === 'memory' ? undefined : options.filename;
    this.readOnly = file.readOnly;
    this.cacheDirect = direct;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.detectZeroes = options.detectZeroes ?? 'off';
    this.features = {
      flush: true,
      discard: unmap && !file.readOnly,
      writeZeroes: !file.readOnly,
      writeZeroesMayUnmap: unmap && !file.readOnly,
    };
    this.limits = known.limits;
    this.engine = {
      kind: 'file',
      fd: file.fd,
      // O_DIRECT checks each segment's length against the block size as well as its address.
      memoryAlignment: direct ? Math.max(known.memoryAlignment, known.limits.requestAlignment) : 1,
      noFlush: this.cacheNoFlush || options.driver === 'memory',
      ignoreDiscard: !unmap,
      forceAsync: options.driver !== 'memory' && options.aio === 'threads',
    };
    this.#options = options;
    this.#isBlockDevice = file.stats.isBlockDevice();
    this.#size = known.size;
  }

  get size(): number {
    return this.#size;
  }

  async resize(size: number): Promise<void> {
    const name = this.filename ?? this.nodeName;
    if (this.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', `cannot resize '${name}': it is open read-only`);
    }
    if (!Number.isSafeInteger(size) || size < 0 || size % sectorBytes !== 0) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `cannot resize '${name}' to ${size} bytes: not a multiple of ${sectorBytes}`,
      );
    }
    if (this.#isBlockDevice) {
      const device = blockDeviceGeometry(this.engine.fd).size;
      if (size > device) {
        throw new VduseError(
          'INVALID_ARGUMENT',
          `cannot grow '${name}' to ${size} bytes: the device has ${device}`,
          { hint: 'Grow the device first (its volume manager can), then resize again.' },
        );
      }
    } else {
      ftruncateSync(this.engine.fd, size);
    }
    this.#size = size;
  }

  /** Access, cache mode and the like may change, the image may not. Throws what opening throws. */
  async reopen(options: BlockNodeOptions): Promise<ReopenedNode> {
    const old = this.#options;
    if (old.driver === 'memory' || options.driver !== old.driver) {
      throw new VduseError('NOT_SUPPORTED', `Block format '${this.driver}' does not support reopening files`);
    }
    checkUnchanged('filename', old.filename, options.filename);
    checkUnchanged('locking', old.locking, options.locking);
    checkOptions(options);
    const request = { filename: old.filename, mode: old.locking ?? 'auto' };
    const file = openWithFallback(options);
    try {
      const node = new FileNode(options, file);
      const locks = beginLockHandover(
        { ...request, fd: this.engine.fd, writable: !this.readOnly },
        { ...request, fd: file.fd, writable: !file.readOnly },
      );
      return {
        node,
        commit: () => {
          locks.finish();
          return this.close();
        },
        abort: () => {
          locks.goBack();
          return node.close();
        },
      };
    } catch (error) {
      closeFd(file.fd);
      throw error;
    }
  }

  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      closeFd(this.engine.fd);
    }
  }
}

function checkUnchanged(name: string, old: string | undefined, now: string | undefined): void {
  if (old !== now) {
    throw new VduseError('INVALID_ARGUMENT', `Cannot change the option '${name}'`);
  }
}

function checkOptions(options: FileNodeOptions): void {
  if (options.aio === 'native' && options.cache?.direct !== true) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      'aio=native was specified, but it requires cache.direct=on, which was not specified.',
    );
  }
  if (options.detectZeroes === 'unmap' && options.discard !== 'unmap') {
    throw new VduseError(
      'INVALID_ARGUMENT',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    );
  }
}

/** Opens and locks an image. Throws NOT_FOUND, PERMISSION_DENIED, IMAGE_INVALID or IMAGE_LOCKED. */
export function openFileNode(options: FileNodeOptions): BlockNode {
  checkOptions(options);
  const file = openWithFallback(options);
  try {
    checkType(options, file.stats);
    lockImage({
      fd: file.fd,
      filename: options.filename,
      writable: !file.readOnly,
      mode: options.locking ?? 'auto',
    });
    return new FileNode(options, file);
  } catch (error) {
    closeFd(file.fd);
    throw error;
  }
}

/** A disk in memory, gone when the node closes. Blocks that were never written take no memory. */
export function openMemoryNode(options: MemoryNodeOptions): BlockNode {
  checkSize('memory', options.size);
  const fd = createMemoryFile(`vduse-${options.nodeName}`, options.size);
  try {
    return new FileNode(options, { fd, readOnly: options.readOnly ?? false, stats: fstatSync(fd) });
  } catch (error) {
    closeFd(fd);
    throw error;
  }
}
