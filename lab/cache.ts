import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { withProgress } from './progress.js';

/** Everything that is slow to get is kept outside the tree, shared by all checkouts of one user. */
export function cachePath(...parts: string[]): string {
  const own = process.env['VDUSE_CACHE'];
  const base = own || join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'vduse');
  return resolve(base, ...parts);
}

export function labCache(...parts: string[]): string {
  return cachePath('lab', ...parts);
}

export function readJson<T>(path: string): T | undefined {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as T;
  } catch {
    // Missing or damaged: whatever it remembered is found out again.
    return undefined;
  }
}

export function temporaryPath(path: string): string {
  return `${path}.${process.pid}-${randomBytes(4).toString('hex')}.tmp`;
}

/** A reader sees the old file or the new one, never half of one. */
export function writeFileAtomic(path: string, data: string | Buffer): void {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = temporaryPath(path);
  writeFileSync(temporary, data);
  renameSync(temporary, path);
}

/** Fills a directory under another name, and gives it its own name only when it is complete. */
export async function createDirectoryAtomic(
  path: string,
  fill: (path: string) => Promise<void>,
): Promise<void> {
  const temporary = temporaryPath(path);
  mkdirSync(temporary, { recursive: true });
  try {
    await fill(temporary);
    rmSync(path, { recursive: true, force: true });
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

/**
 * One lab at a time prepares things. The lock is a socket in the abstract namespace: the kernel takes it away
 * with the process that holds it, so that a killed lab leaves no stale lock behind.
 */
export async function withCacheLock<T>(work: () => Promise<T>): Promise<T> {
  const name = createHash('sha256').update(labCache()).digest('hex').slice(0, 16);
  const tryOnce = (): Promise<Server | undefined> =>
    new Promise((resolve, reject) => {
      const server = createServer();
      server.once('error', (error: NodeJS.ErrnoException) => {
        if (error.code === 'EADDRINUSE') resolve(undefined);
        else reject(error);
      });
      server.listen(`\0vduse-lab-${name}`, () => resolve(server));
    });
  const waitForIt = async (): Promise<Server> => {
    for (;;) {
      const server = await tryOnce();
      if (server !== undefined) return server;
      await sleep(200);
    }
  };

  const lock =
    (await tryOnce()) ?? (await withProgress('waiting for another lab that fills the cache', waitForIt));
  try {
    return await work();
  } finally {
    lock.close();
  }
}
