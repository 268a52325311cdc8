/** Makes an empty raw image, over one that exists only where that is meant and nobody uses it. */
import { constants, type Stats, statfsSync, statSync } from 'node:fs';
import { type FileHandle, open, unlink } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { errorMessage, VduseError } from '../../base/errors.js';
import { lockImage } from '../../block/drivers/image-lock.js';
import type { CommandContext } from './command.js';
import { InterruptedError } from './errors.js';
import { Interruption } from './interruption.js';
import { formatSize } from './size.js';

export interface CreateRequest {
  readonly path: string;
  /** Bytes, whole sectors. */
  readonly size: number;
  /** Replaces an image that exists. */
  readonly force: boolean;
  /** Takes all of its space now. */
  readonly preallocate: boolean;
}

const CHUNK_BYTES = 4 << 20;

/** When it throws, an image that was not there before is not there either. */
export async function createImage(request: CreateRequest, context: CommandContext): Promise<void> {
  const { path } = request;
  const before = existing(path);
  if (before !== undefined) {
    checkReplaceable(request, before);
  }
  const isNew = before === undefined;
  const file = await openImage(request, isNew);
  try {
    // Whoever has the image open would find it empty under his feet.
    lockImage({ fd: file.fd, filename: path, writable: true, mode: 'auto' });
    await fill(file, request, context);
  } catch (error) {
    if (isNew) {
      await unlink(path);
    }
    throw error;
  } finally {
    await file.close();
  }
}

function existing(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw creationError(path, error);
  }
}

function checkReplaceable({ path, force }: CreateRequest, stats: Stats): void {
  if (!stats.isFile()) {
    const kind = stats.isDirectory() ? 'a directory' : stats.isBlockDevice() ? 'a block device' : 'no file';
    throw new VduseError('IMAGE_INVALID', `cannot create '${path}': it is ${kind}`, {
      hint: stats.isBlockDevice()
        ? `A block device needs no image: vduse export ${path}`
        : 'Give the path of a file.',
    });
  }
  if (!force) {
    throw new VduseError('ALREADY_EXISTS', `cannot create '${path}': it exists already`, {
      hint: 'Choose another path, or replace it with --force: its contents are lost.',
    });
  }
}

async function openImage({ path }: CreateRequest, isNew: boolean): Promise<FileHandle> {
  // Not truncated here: first comes the lock. A FIFO that took the file's place meanwhile must not block.
  const creation = isNew ? constants.O_CREAT | constants.O_EXCL : 0;
  const flags = constants.O_RDWR | constants.O_NONBLOCK | creation;
  let file: FileHandle;
  try {
    file = await open(path, flags, 0o644);
  } catch (error) {
    throw creationError(path, error);
  }
  if (!(await file.stat()).isFile()) {
    await file.close();
    throw new VduseError('IMAGE_INVALID', `cannot create '${path}': it is no file`);
  }
  return file;
}

async function fill(file: FileHandle, request: CreateRequest, context: CommandContext): Promise<void> {
  const { path, size } = request;
  try {
    await file.truncate(0);
    if (!request.preallocate) {
      await file.truncate(size);
      return;
    }
    const { bavail, bsize } = statfsSync(dirname(resolve(path)));
    if (bavail * bsize < size) {
      throw new VduseError(
        'SYSTEM_CALL',
        `cannot create '${path}': ${formatSize(size)} are wanted, ${formatSize(bavail * bsize)} are free`,
        { hint: 'Free some space, or leave out --preallocate: then it takes space as it is written.' },
      );
    }
    await writeZeroes(file, size, context);
  } catch (error) {
    throw creationError(path, error);
  }
}

async function writeZeroes(file: FileHandle, size: number, context: CommandContext): Promise<void> {
  const zeroes = new Uint8Array(CHUNK_BYTES);
  let done = 0;
  const interruption = new Interruption();
  const { signal } = interruption;
  const write = async (): Promise<void> => {
    while (done < size && !signal.aborted) {
      const { bytesWritten } = await file.write(zeroes, 0, Math.min(CHUNK_BYTES, size - done), done);
      done += bytesWritten;
    }
    await file.sync();
  };
  try {
    await context.terminal.during(
      () => `writing zeroes: ${formatSize(done)} of ${formatSize(size)}`,
      write(),
    );
  } finally {
    interruption.close();
  }
  if (interruption.received !== undefined) {
    throw new InterruptedError(interruption.received, `${interruption.received}: the image was not finished`);
  }
}

function creationError(path: string, error: unknown): unknown {
  if (error instanceof VduseError) {
    return error;
  }
  const { code = '' } = error as NodeJS.ErrnoException;
  const reasons: Readonly<Record<string, readonly [VduseError['code'], string, string]>> = {
    ENOENT: ['NOT_FOUND', 'its directory does not exist', `Make it: mkdir -p ${dirname(path)}`],
    ENOTDIR: ['NOT_FOUND', 'its directory is no directory', 'Check the path.'],
    EACCES: ['PERMISSION_DENIED', 'permission denied', 'Choose a directory that you may write to.'],
    EPERM: ['PERMISSION_DENIED', 'permission denied', 'Choose a directory that you may write to.'],
    EROFS: ['PERMISSION_DENIED', 'its file system is read-only', 'Choose another one.'],
    EFBIG: ['INVALID_ARGUMENT', 'its file system has no files of that size', 'Choose a smaller size.'],
    ENOSPC: ['SYSTEM_CALL', 'no space is left on its file system', 'Free some space.'],
    EEXIST: ['ALREADY_EXISTS', 'it exists already', 'Somebody made it just now.'],
  };
  const [errorCode, reason, hint] = reasons[code] ?? ['SYSTEM_CALL', errorMessage(error), undefined];
  return new VduseError(errorCode, `cannot create '${path}': ${reason}`, {
    cause: error,
    hint,
  });
}
