/** Disk images to measure on. */
import { randomFillSync } from 'node:crypto';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import { runProgram } from './processes.js';

const CHUNK_BYTES = 1 << 20;

/**
 * Filled with random bytes: reading blocks that were never written costs nothing, and would say nothing. On the
 * disk when this returns, so that nothing is left to be written while something else is measured.
 */
export async function makeImage(path: string, mebibytes: number): Promise<void> {
  const chunk = Buffer.alloc(CHUNK_BYTES);
  const file = await open(path, 'w');
  try {
    for (let n = 0; n < mebibytes; n++) {
      randomFillSync(chunk);
      await file.write(chunk);
    }
    await file.datasync();
  } finally {
    await file.close();
  }
}

/** Reads a file once, so that all of it is in the page cache. */
export async function warmPageCache(path: string): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(4 * CHUNK_BYTES);
  const file = await open(path, 'r');
  try {
    while ((await file.read(buffer, 0, buffer.length, null)).bytesRead > 0) await turn();
  } finally {
    await file.close();
  }
}

/** Takes a file out of the page cache: O_DIRECT on cached pages pays for throwing them away. */
export async function dropPageCache(path: string): Promise<void> {
  await runProgram(['dd', `of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
}

/** Writes back what a run has left in the page cache, so that the next run does not share the disk with it. */
export async function syncFile(path: string): Promise<void> {
  const file = await open(path, constants.O_RDWR);
  try {
    await file.datasync();
  } finally {
    await file.close();
  }
}
