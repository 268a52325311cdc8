import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

import { LabError } from './errors.js';

/** Which Debian package a program comes from, to tell people what to install. */
const PACKAGE_OF: Record<string, string> = {
  'qemu-system-x86_64': 'qemu-system-x86',
  'apt-get': 'apt',
  'dpkg-deb': 'dpkg',
  xz: 'xz-utils',
  zstd: 'zstd',
  depmod: 'kmod',
  modinfo: 'kmod',
  setpriv: 'util-linux',
  unshare: 'util-linux',
};

/** The administrator's directories are often missing from an ordinary user's PATH, and depmod lives there. */
const SYSTEM_PATH = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];

export function searchPath(): string {
  const own = (process.env['PATH'] ?? '').split(delimiter).filter((entry) => entry.startsWith('/'));
  return [...new Set([...own, ...SYSTEM_PATH])].join(delimiter);
}

export function findTool(name: string): string | undefined {
  for (const directory of searchPath().split(delimiter)) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // Not in this directory; the next one may have it.
    }
  }
  return undefined;
}

/** Fails with the exact command to type, once for all that is missing instead of one program at a time. */
export function requireTools(names: readonly string[], what: string): void {
  const missing = names.filter((name) => findTool(name) === undefined);
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map((name) => PACKAGE_OF[name] ?? name))];
  throw new LabError(
    `${what} needs ${missing.join(', ')}, which this machine doesn't have. ` +
      `Install with: apt-get install --no-install-recommends ${packages.join(' ')}`,
  );
}

interface RunOptions {
  cwd?: string;
  input?: string;
}

/** Runs a program to its end and gives its stdout; a failure carries the command line and its stderr. */
export function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const child = spawn(findTool(program) ?? program, args, {
      cwd: options.cwd,
      // Sorting, messages and number formats must not depend on the user's language.
      env: { ...process.env, PATH: searchPath(), LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
    child.on('error', (cause) =>
      reject(new LabError(`Could not start ${program}: ${cause.message}`, { cause })),
    );
    child.on('close', (status, signal) => {
      if (status === 0) return resolve(Buffer.concat(stdout));
      const ended = signal === null ? `status ${status}` : `signal ${signal}`;
      const said = Buffer.concat(stderr).toString().trim().split('\n').slice(-12).join('\n  ');
      reject(new LabError(`\`${[program, ...args].join(' ')}\` ended with ${ended}:\n  ${said}`));
    });
  });
}
