/** Gets what the kernel still holds of a disk's data written, from outside of this process. */
import { execFile } from 'node:child_process';
import type { DiskUse } from './disk-use.js';

/**
 * Syncs the file systems on the disk, and the disk itself. In processes of their own: this one has to serve
 * the writes, and a thread of it that waited for them might be the one that they need. Never rejects; what
 * can't be written is the file system's to report.
 */
export async function flushDisk(path: string, uses: readonly DiskUse[]): Promise<void> {
  const directories = uses.flatMap((use) => (use.kind === 'mount' ? [use.directory] : []));
  await Promise.all(directories.map((directory) => sync(['-f', directory])));
  await sync([path]);
}

function sync(args: readonly string[]): Promise<void> {
  return new Promise((resolve) => {
    execFile('sync', args, () => resolve());
  });
}
