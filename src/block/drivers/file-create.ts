/** Makes an image file: empty, or with its space set aside. */
import { constants, type Stats } from 'node:fs';
import { type FileHandle, lstat, open, unlink } from 'node:fs/promises';
import { VduseError } from '../../base/errors.js';
import { Errno } from '../../native/errno.js';
import { avoidCopyOnWrite, fallocate } from '../../native/fd.js';
import { systemCallError } from '../../native/ffi.js';
import type { CreateContext } from '../create.js';
import { lockImage } from './image-lock.js';

export interface FileImageOptions {
  readonly driver: 'file';
  readonly filename: string;
  /** Bytes, rounded up to a whole sector. */
  readonly size: number;
  /** `falloc`: the file system sets the blocks aside; `full`: zeroes are written. */
  readonly preallocation?: 'off' | 'falloc' | 'full';
  /** Asks the file system not to copy on write, where it does that (btrfs). */
  readonly nocow?: boolean;
}

const sectorBytes = 512;
const mode = 0o644;
/** What is set aside, or written, in one go. */
const fallocBytes = 1 << 30;
const zeroBytes = 4 << 20;

export async function createFile(options: FileImageOptions, context: CreateContext): Promise<void> {
  const { filename } = options;
  const { file, isNew } = await openOrMake(filename);
  try {
    await checkFile(file, filename);
    // Whoever has the image open would find it empty under his feet.
    lockImage({ fd: file.fd, filename, writable: true, mode: 'auto' });
    await fill(file, options, context);
  } catch (error) {
    if (isNew) {
      await removeOwn(filename, await file.stat());
    }
    throw error;
  } finally {
    await file.close();
  }
}

async function openOrMake(filename: string): Promise<{ file: FileHandle; isNew: boolean }> {
  // Not truncated here: first comes the lock. A FIFO that is there must not block.
  const flags = constants.O_RDWR | constants.O_NONBLOCK;
  try {
    return { file: await open(filename, flags | constants.O_CREAT | constants.O_EXCL, mode), isNew: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
      throw creationError(filename, error);
    }
  }
  try {
    return { file: await open(filename, flags), isNew: false };
  } catch (error) {
    throw creationError(filename, error);
  }
}

function creationError(filename: string, cause: unknown): VduseError {
  const { errno = 0 } = cause as NodeJS.ErrnoException;
  const { message } = systemCallError('open', -errno, filename);
  return new VduseError('SYSTEM_CALL', `Could not create '${filename}': ${message}`, { cause });
}

async function checkFile(file: FileHandle, filename: string): Promise<void> {
  if (!(await file.stat()).isFile()) {
    throw new VduseError('IMAGE_INVALID', `Could not create '${filename}': it is there, and no file`, {
      hint: 'Give the path of a file; a block device needs no image.',
    });
  }
}

async function fill(file: FileHandle, options: FileImageOptions, context: CreateContext): Promise<void> {
  const { filename, preallocation = 'off', nocow = false } = options;
  const size = Math.ceil(options.size / sectorBytes) * sectorBytes;
  try {
    await file.truncate(0);
    if (nocow) {
      // Only an empty file takes it. That it is not taken costs speed and nothing else, as in QEMU.
      avoidCopyOnWrite(file.fd);
    }
    await file.truncate(size);
    if (preallocation === 'falloc') {
      await inParts(size, fallocBytes, context, (offset, length) => setAside(file.fd, offset, length));
    } else if (preallocation === 'full') {
      const zeroes = new Uint8Array(Math.min(zeroBytes, size));
      await inParts(size, zeroBytes, context, async (offset, length) => {
        const { bytesWritten } = await file.write(zeroes, 0, length, offset);
        return bytesWritten;
      });
      await file.sync();
    }
  } catch (error) {
    throw fillError(filename, preallocation, error);
  }
  await context.onProgress(size, size);
}

async function inParts(
  size: number,
  partBytes: number,
  { signal, onProgress }: CreateContext,
  work: (offset: number, length: number) => Promise<number>,
): Promise<void> {
  for (let done = 0; done < size; ) {
    await onProgress(done, size);
    signal.throwIfAborted();
    done += await work(done, Math.min(partBytes, size - done));
  }
}

async function setAside(fd: number, offset: number, length: number): Promise<number> {
  const result = fallocate(fd, 0, offset, length);
  if (result !== 0) {
    throw systemCallError('fallocate', -result);
  }
  return length;
}

function fillError(filename: string, preallocation: string, error: unknown): unknown {
  const { errno } = error as { errno?: unknown };
  if (typeof errno !== 'number') {
    return error;
  }
  const code = Math.abs(errno);
  const hints: Readonly<Record<number, string>> = {
    [Errno.ENOSPC]: 'Free some space, or leave out preallocation: then it takes space as it is written.',
    [Errno.EOPNOTSUPP]: 'Its file system sets no blocks aside: use preallocation=full.',
  };
  return new VduseError(
    'SYSTEM_CALL',
    `Could not create '${filename}' (preallocation=${preallocation}): ${systemCallError('write', code).message}`,
    { cause: error, hint: hints[code] },
  );
}

/** Removes the file that was made, unless another one has its name by now. */
async function removeOwn(filename: string, made: Stats): Promise<void> {
  const found = await lstat(filename).catch(() => undefined);
  if (found !== undefined && found.dev === made.dev && found.ino === made.ino) {
    await unlink(filename);
  }
}
