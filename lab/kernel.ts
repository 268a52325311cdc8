import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';

import {
  createDirectoryAtomic,
  labCache,
  readJson,
  temporaryPath,
  withCacheLock,
  writeFileAtomic,
} from './cache.js';
import { DebianSuite } from './debian.js';
import { LabError } from './errors.js';
import { installModules, MODULE_LIST } from './modules.js';
import { say, withProgress } from './progress.js';
import { requireTools, run } from './tools.js';
import { extractVmlinux } from './vmlinux.js';

export const KERNEL_CHANNELS = ['stable', 'unstable'] as const;
export type KernelChannel = (typeof KERNEL_CHANNELS)[number];

/** A kernel that is ready to boot. */
export interface Kernel {
  channel: KernelChannel;
  /** As `uname -r` says it. */
  version: string;
  directory: string;
  vmlinux: string;
  busybox: string;
  /** Holds lib/modules/VERSION. */
  modules: string;
  /** Absolute paths of what the initramfs loads, in order. */
  earlyModules: string[];
}

/** What a channel's last preparation found: enough to boot again without asking the network. */
interface Pointer {
  version: string;
  packages: string[];
}

/** Raised when the layout of a prepared kernel's directory changes. */
const LAYOUT = 1;

function kernelDirectory(version: string): string {
  const hash = createHash('sha256').update(`${LAYOUT} ${MODULE_LIST}`).digest('hex').slice(0, 8);
  return labCache('kernels', `${version}.${hash}`);
}

function load(channel: KernelChannel, version: string): Kernel | undefined {
  const directory = kernelDirectory(version);
  const early = readJson<string[]>(join(directory, 'early-modules.json'));
  if (early === undefined) return undefined;
  const modules = join(directory, 'modules');
  return {
    channel,
    version,
    directory,
    vmlinux: join(directory, 'vmlinux'),
    busybox: join(directory, 'busybox'),
    modules,
    earlyModules: early.map((path) => join(modules, path)),
  };
}

/**
 * The Debian kernel of the channel, from the cache if it's there, without a look at the network; else, or with
 * `refresh`, downloaded and prepared.
 */
export async function prepareKernel(channel: KernelChannel, refresh = false): Promise<Kernel> {
  const find = (): Kernel | undefined => {
    const pointer = readJson<Pointer>(labCache('kernels', `${channel}.json`));
    return pointer === undefined ? undefined : load(channel, pointer.version);
  };
  const cached = find();
  if (cached !== undefined && !refresh) return cached;

  requireTools(['apt-get', 'dpkg-deb', 'xz', 'zstd', 'depmod', 'modinfo'], 'Preparing a kernel for the lab');
  try {
    mkdirSync(labCache(), { recursive: true });
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : cause;
    throw new LabError(`The lab's cache can't be made: ${reason}. Name another directory with VDUSE_CACHE.`, {
      cause,
    });
  }
  return await withCacheLock(async () => {
    // The lab that held the lock may have prepared what this one wants.
    const byAnother = refresh ? undefined : find();
    return byAnother ?? (await fetchKernel(channel, refresh));
  });
}

async function fetchKernel(channel: KernelChannel, refresh: boolean): Promise<Kernel> {
  const suite = new DebianSuite(channel);
  const pointerPath = labCache('kernels', `${channel}.json`);
  const known = readJson<Pointer>(pointerPath);

  let debs: string[];
  let pointer: Pointer;
  if (known !== undefined && !refresh && known.packages.every((path) => existsSync(path))) {
    // Only the lab's own idea of a prepared kernel has changed; the packages are still good.
    pointer = known;
    debs = known.packages;
  } else {
    await suite.update();
    const version = await newestVersion(suite, channel);
    const names = await kernelPackages(suite, version);
    debs = [];
    for (const name of names) debs.push(await suite.download(name));
    pointer = { version, packages: debs };
  }

  if (load(channel, pointer.version) === undefined) {
    await withProgress(`unpacking Linux ${pointer.version}`, () => unpackKernel(pointer.version, debs));
    say(`Linux ${pointer.version} (Debian ${channel}) is ready in ${kernelDirectory(pointer.version)}`);
  } else if (refresh) {
    say(`Linux ${pointer.version} is the newest of Debian ${channel}, and ready`);
  }
  writeFileAtomic(pointerPath, JSON.stringify(pointer, null, 2));
  suite.forgetOthers(debs);

  const kernel = load(channel, pointer.version);
  if (kernel === undefined)
    throw new LabError(`Linux ${pointer.version} was prepared and can't be found again.`);
  return kernel;
}

/** The metapackage depends on the current kernel, whose name carries the version. */
async function newestVersion(suite: DebianSuite, channel: KernelChannel): Promise<string> {
  const depends = (await suite.field('linux-image-amd64', 'Depends')) ?? '';
  const version = /linux-image-(\d[^\s,]*-amd64)/.exec(depends)?.[1];
  if (version === undefined) {
    throw new LabError(
      `Debian ${channel}: linux-image-amd64 should depend on linux-image-VERSION-amd64, and depends on ` +
        `"${depends}".`,
    );
  }
  return version;
}

async function kernelPackages(suite: DebianSuite, version: string): Promise<string[]> {
  // From 7.x on Debian splits the image: linux-image-VERSION is then an empty package that depends on these.
  const split = [`linux-binary-${version}`, `linux-modules-${version}`, `linux-base-${version}`];
  const isSplit = (await suite.field(split[0], 'Version')) !== undefined;
  return [...(isSplit ? split : [`linux-image-${version}`]), 'busybox-static'];
}

async function unpackKernel(version: string, debs: readonly string[]): Promise<void> {
  const unpacked = temporaryPath(labCache('kernels', 'unpacked'));
  mkdirSync(unpacked, { recursive: true });
  try {
    for (const deb of debs) await run('dpkg-deb', ['--extract', deb, unpacked]);
    const candidates = [`boot/vmlinuz-${version}`, `usr/lib/modules/${version}/vmlinuz`];
    const image = candidates.map((path) => join(unpacked, path)).find((path) => existsSync(path));
    if (image === undefined) {
      throw new LabError(`The packages of Linux ${version} have none of ${candidates.join(', ')}.`);
    }
    const busybox = ['usr/bin/busybox', 'bin/busybox']
      .map((path) => join(unpacked, path))
      .find((path) => existsSync(path));
    if (busybox === undefined) throw new LabError('The package busybox-static has no busybox in it.');

    await createDirectoryAtomic(kernelDirectory(version), async (directory) => {
      await extractVmlinux(image, join(directory, 'vmlinux'));
      copyFileSync(busybox, join(directory, 'busybox'));
      const early = await installModules(unpacked, join(directory, 'modules'), version);
      writeFileAtomic(join(directory, 'early-modules.json'), JSON.stringify(early));
    });
  } finally {
    rmSync(unpacked, { recursive: true, force: true });
  }
}
