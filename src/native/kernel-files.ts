/**
 * Small files of procfs and sysfs. They come and go with devices and processes, so what is not there (any more)
 * is an ordinary answer; everything else is an error. Paths are relative to a root, "/" but for tests.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { systemCallError } from './ffi.js';

/** What says that a thing is not there: never was, just went, or is something else. */
const absent = new Set(['ENOENT', 'ENOTDIR', 'ENODEV', 'ENXIO', 'ESRCH', 'EINVAL']);

function unlessAbsent<T>(call: string, path: string, read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code = '', errno } = error as NodeJS.ErrnoException;
    if (absent.has(code)) {
      return undefined;
    }
    throw errno === undefined ? error : systemCallError(call, -errno, path);
  }
}

/** The names in a directory, sorted; none if it is not there. */
export function listDirectory(root: string, path: string): string[] {
  const full = join(root, path);
  return (unlessAbsent('readdir', full, () => readdirSync(full)) ?? []).sort();
}

/** A file's text without its last newline. */
export function readText(root: string, path: string): string | undefined {
  const full = join(root, path);
  return unlessAbsent('read', full, () => readFileSync(full, 'utf8'))?.replace(/\n$/, '');
}

/** A file's text as a whole number that is not negative. */
export function readNumber(root: string, path: string): number | undefined {
  const text = readText(root, path);
  return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined;
}

/** Where a symbolic link points, as it is written. */
export function readLink(root: string, path: string): string | undefined {
  const full = join(root, path);
  return unlessAbsent('readlink', full, () => readlinkSync(full));
}
