/**
 * The file that tells the process id, locked for as long as the process lives. The lock, not the number in the
 * file, says whether the file is still somebody's: numbers are used again.
 */
import { closeSync, fstatSync, ftruncateSync, openSync, statSync, unlinkSync, writeSync } from 'node:fs';
import { resolve } from 'node:path';
import { VduseError } from '../base/errors.js';
import { describeErrno, Errno } from '../native/errno.js';
import { setOfdLock } from '../native/fd.js';
import { systemCallError } from '../native/ffi.js';

/** Attempts at locking the file before somebody else removes it again. */
const ATTEMPTS_MAX = 16;
/** fcntl(2): a lock of length 0 goes on to the end, however far that moves. */
const WHOLE_FILE = { start: 0, length: 0 };

export class PidFile {
  readonly #path: string;
  readonly #fd: number;
  #removed = false;

  private constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  /** Throws BUSY when another process holds the file. */
  static create(path: string): PidFile {
    const absolute = resolve(path);
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const fd = open(absolute);
      try {
        lock(fd, absolute);
        // Somebody who ended meanwhile may have removed the file that is locked now.
        if (statSync(absolute, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) {
          ftruncateSync(fd);
          writeSync(fd, `${process.pid}\n`);
          return new PidFile(absolute, fd);
        }
      } catch (error) {
        closeSync(fd);
        throw error;
      }
      closeSync(fd);
    }
    throw new VduseError('BUSY', `cannot create PID file: '${absolute}' keeps being removed`);
  }

  /** Idempotent. */
  remove(): void {
    if (this.#removed) {
      return;
    }
    this.#removed = true;
    try {
      unlinkSync(this.#path);
    } catch {
      // Somebody removed it; that is what was wanted.
    }
    closeSync(this.#fd);
  }
}

function open(path: string): number {
  try {
    return openSync(path, 'a', 0o600);
  } catch (error) {
    const { text } = describeErrno(-((error as NodeJS.ErrnoException).errno ?? 0));
    throw new VduseError('SYSTEM_CALL', `cannot create PID file: Could not create '${path}': ${text}`, {
      cause: error,
      hint: 'Its directory must exist, and be one that this user may write to.',
    });
  }
}

function lock(fd: number, path: string): void {
  const result = setOfdLock(fd, 'exclusive', WHOLE_FILE);
  if (result === -Errno.EAGAIN) {
    throw new VduseError('BUSY', `cannot create PID file: '${path}' belongs to a running process`, {
      hint: 'The file has its number: end that process, or choose another path.',
    });
  }
  if (result < 0) {
    throw systemCallError('fcntl(F_OFD_SETLK)', -result, path);
  }
}
