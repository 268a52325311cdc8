import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';

import { labCache } from './cache.js';
import { findTool } from './tools.js';

/** The mount point that a path lies on. */
function mountPointOf(path: string): string {
  const points = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) =>
      line.split(' ')[4].replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))),
    );
  const holds = (point: string) => point === '/' || path === point || path.startsWith(`${point}/`);
  return points.filter(holds).reduce((best, point) => (point.length >= best.length ? point : best), '/');
}

/** $1: directory to show the root at; then, up to "--", further mount points to show in it; then the command. */
const SHOW_ROOT = `
root=$1; shift
mount --bind / "$root" || exit 70
while [ "$1" != -- ]; do mount --bind "$1" "$root$1" || exit 70; shift; done
shift
mount -o remount,bind,ro "$root" || exit 70
exec "$@"`;

/** How to start QEMU, and the directory that it shares as the guest's root. */
export interface HostRoot {
  path: string;
  /** Program and arguments to put in front of QEMU's. */
  prefix: string[];
}

/**
 * Shows the host's root alone, without the host's /proc, /sys and /dev mounted in it, read-only: a bind mount
 * in a mount namespace of QEMU's own, which vanishes with the process however that ends. Without the right to
 * do so the plain / is shared, read-only too; the guest mounts its own /proc and so on over the host's.
 */
export function hostRoot(neededPaths: readonly string[]): HostRoot {
  // The kernel ends QEMU when this process dies, even if it dies too suddenly to do so itself.
  const tied = [findTool('setpriv') ?? 'setpriv', '--pdeathsig', 'KILL', '--'];
  const unshare = [findTool('unshare') ?? 'unshare', '--mount', '--propagation', 'private', '--'];

  const probe = spawnSync(unshare[0], [...unshare.slice(1), 'mount', '--bind', '/', '/mnt'], {
    stdio: 'ignore',
  });
  if (probe.status !== 0) return { path: '/', prefix: tied };

  const path = labCache('root');
  mkdirSync(path, { recursive: true });
  const others = [...new Set(neededPaths.map(mountPointOf))].filter((point) => point !== '/').sort();
  return { path, prefix: [...tied, ...unshare, '/bin/sh', '-c', SHOW_ROOT, 'lab', path, ...others, '--'] };
}
