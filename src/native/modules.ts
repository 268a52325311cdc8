/** Kernel modules: which are there, and loading them. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { VduseError } from '../base/errors.js';
import { readText } from './kernel-files.js';

/**
 * `builtin`: part of the kernel. `loadable`: a file of this kernel's modules. `missing`: none of these; in a
 * container that has no /lib/modules the host may still be able to load it.
 */
export type ModuleState = 'builtin' | 'loaded' | 'loadable' | 'missing';

/** What a module makes when it starts; a kernel that has it built in may show nothing else of it. */
const traces: Readonly<Record<string, string>> = {
  vdpa: 'sys/bus/vdpa',
  vduse: 'sys/class/vduse',
  virtio_vdpa: 'sys/bus/vdpa/drivers/virtio_vdpa',
  vhost_vdpa: 'sys/bus/vdpa/drivers/vhost_vdpa',
  virtio_blk: 'sys/bus/virtio/drivers/virtio_blk',
};

const MODPROBE_TIMEOUT_MS = 60_000;

/** The kernel's version, as in `uname -r`. */
export function kernelRelease(root = '/'): string {
  return readText(root, 'proc/sys/kernel/osrelease') ?? '';
}

export function moduleState(name: string, root = '/'): ModuleState {
  const module = canonicalName(name);
  const here = (path: string): boolean => existsSync(join(root, path));
  const listed = (readText(root, 'proc/modules') ?? '').split('\n');
  if (listed.some((line) => line.startsWith(`${module} `)) || here(`sys/module/${module}/initstate`)) {
    return 'loaded';
  }
  const trace = traces[module];
  if (here(`sys/module/${module}`) || (trace !== undefined && here(trace))) {
    return 'builtin';
  }
  const files = `lib/modules/${kernelRelease(root)}`;
  if (fileNames(root, `${files}/modules.builtin`).has(module)) {
    return 'builtin';
  }
  return fileNames(root, `${files}/modules.dep`).has(module) ? 'loadable' : 'missing';
}

/**
 * Loads modules in the order given, which decides the driver that gets a vDPA device: the one loaded first.
 * Returns those that were not there before.
 */
export async function loadModules(names: readonly string[], root = '/'): Promise<string[]> {
  for (const name of names) {
    if (!/^[A-Za-z0-9_][A-Za-z0-9_-]*$/.test(name)) {
      throw new VduseError('INVALID_ARGUMENT', `${JSON.stringify(name)} is no name of a kernel module`);
    }
  }
  const isThere = (name: string): boolean => ['builtin', 'loaded'].includes(moduleState(name, root));
  const wanted = names.filter((name) => !isThere(name));
  if (wanted.length === 0) {
    return [];
  }
  const said = await modprobe(wanted);
  const missing = wanted.filter((name) => !isThere(name));
  if (missing.length > 0) {
    throw loadError(missing, said, kernelRelease(root));
  }
  return wanted;
}

/** modprobe and depmod take "-" and "_" for the same; the kernel writes "_". */
function canonicalName(name: string): string {
  return name.replaceAll('-', '_');
}

/** The modules whose files start the lines of modules.dep ("path: paths") or are those of modules.builtin. */
function fileNames(root: string, path: string): Set<string> {
  const names = new Set<string>();
  for (const line of (readText(root, path) ?? '').split('\n')) {
    const match = /([^/:]+)\.ko(?:\.\w+)?(?::|$)/.exec(line);
    if (match !== null) {
      names.add(canonicalName(match[1]));
    }
  }
  return names;
}

/** Runs modprobe and returns what it complained of. The modules, not its exit status, tell how it went. */
function modprobe(names: readonly string[]): Promise<string> {
  // With -a: without it every name after the first would be taken for a parameter.
  const command = ['-a', ...names];
  // A service's PATH often lacks the directories where modprobe lives.
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C' };
  return new Promise((resolve) => {
    execFile('modprobe', command, { env, timeout: MODPROBE_TIMEOUT_MS }, (error, _stdout, stderr) => {
      const said = stderr.trim();
      resolve(said === '' && error !== null ? error.message : said);
    });
  });
}

function loadError(missing: readonly string[], said: string, release: string): VduseError {
  const message = `loading kernel modules ${missing.join(', ')}: ${said === '' ? 'they did not appear' : said}`;
  if (/Operation not permitted|Permission denied/i.test(said)) {
    return new VduseError('PERMISSION_DENIED', message, {
      hint: `Run \`modprobe -a ${missing.join(' ')}\` as root; for a container, on the host.`,
    });
  }
  if (/ENOENT/.test(said)) {
    return new VduseError('MODULE_MISSING', message, {
      hint: `modprobe is not installed here (package kmod). In a container: run \`modprobe -a ${missing.join(' ')}\` on the host.`,
    });
  }
  return new VduseError('MODULE_MISSING', message, {
    hint:
      `Install the package with the extra modules of kernel ${release} (on Ubuntu linux-modules-extra-${release}), ` +
      `or in a container run \`modprobe -a ${missing.join(' ')}\` on the host.`,
  });
}
