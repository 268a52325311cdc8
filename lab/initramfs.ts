import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync } from 'node:fs';
import { basename, join } from 'node:path';

import { labCache, writeFileAtomic } from './cache.js';
import { type CpioEntry, DIRECTORY, EXECUTABLE, REGULAR, writeCpio } from './cpio.js';
import type { Kernel } from './kernel.js';

const DAY_MS = 86_400_000;

/**
 * The first file system of the machine: busybox, the modules that reach the host's root, and the two scripts.
 * Named by its contents, so that checkouts with different scripts share one cache without harm.
 */
export function buildInitramfs(kernel: Kernel, checkout: string): string {
  const script = (name: string): Buffer => readFileSync(join(checkout, 'lab/guest', name));
  const directories = ['bin', 'dev', 'proc', 'sys', 'modules', 'lower', 'layers', 'root'];
  const entries: CpioEntry[] = [
    ...directories.map((path) => ({ path, mode: DIRECTORY })),
    { path: 'bin/busybox', mode: EXECUTABLE, data: readFileSync(kernel.busybox) },
    { path: 'init', mode: EXECUTABLE, data: script('init.sh') },
    { path: 'session.sh', mode: REGULAR, data: script('session.sh') },
    // The number in front makes the shell's * list them in the order of loading.
    ...kernel.earlyModules.map((path, index) => ({
      path: `modules/${String(index).padStart(2, '0')}-${basename(path)}`,
      mode: REGULAR,
      data: readFileSync(path),
    })),
  ];
  const archive = writeCpio(entries);
  const hash = createHash('sha256').update(archive).digest('hex').slice(0, 16);
  const directory = labCache('initramfs');
  const path = join(directory, `${hash}.cpio`);
  mkdirSync(directory, { recursive: true });
  if (existsSync(path)) utimesSync(path, new Date(), new Date());
  else writeFileAtomic(path, archive);
  forgetUnused(directory);
  return path;
}

/** Every edit of a script leaves one behind. A day is longer than any lab takes to open its own. */
function forgetUnused(directory: string): void {
  for (const name of readdirSync(directory)) {
    const path = join(directory, name);
    const stat = statSync(path, { throwIfNoEntry: false });
    if (stat !== undefined && Date.now() - stat.mtimeMs > DAY_MS) rmSync(path, { force: true });
  }
}
