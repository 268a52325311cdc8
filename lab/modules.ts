import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

import { LabError } from './errors.js';
import { run } from './tools.js';

/** What the early boot needs to reach the host's root, in the order of loading (dependencies come first). */
const EARLY_MODULES = ['9pnet_virtio', '9p', 'overlay'];

/** What jobs may want to modprobe. Names that a kernel doesn't have, or has built in, are skipped. */
const WANTED_MODULES = [
  ...EARLY_MODULES,
  // The device under test and its two buses.
  ...[
    'vduse',
    'vdpa',
    'virtio_vdpa',
    'vhost_vdpa',
    'virtio_blk',
    'virtio_net',
    'virtio_scsi',
    'virtiofs',
    'fuse',
  ],
  // Other block devices to build on or to compare with.
  ...[
    'loop',
    'nbd',
    'ublk_drv',
    'brd',
    'null_blk',
    'scsi_debug',
    'sd_mod',
    'sg',
    'zram',
    'nvme_tcp',
    'nvme_loop',
  ],
  ...[
    'dm_mod',
    'dm_flakey',
    'dm_delay',
    'dm_log_writes',
    'dm_verity',
    'dm_crypt',
    'dm_snapshot',
    'dm_thin_pool',
  ],
  ...[
    'ext4',
    'xfs',
    'btrfs',
    'vfat',
    'isofs',
    'squashfs',
    'nls_cp437',
    'nls_ascii',
    'nls_utf8',
    'nls_iso8859_1',
  ],
  ...['crc32c_generic', 'crc32c_intel', 'libcrc32c', 'crc16', 'mbcache', 'jbd2', 'qemu_fw_cfg'],
  ...['vhost_net', 'tun', 'tap', 'veth', 'bridge', 'dummy'],
];

/** Part of a prepared kernel's name, so that a longer list here is noticed. */
export const MODULE_LIST = JSON.stringify([EARLY_MODULES, WANTED_MODULES]);

/** File names use "-" and "_" as they like; the kernel treats the two as one. */
function canonical(name: string): string {
  return name.replace(/-/g, '_');
}

function findModules(directory: string, found: Map<string, string> = new Map()): Map<string, string> {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) findModules(path, found);
    else if (/\.ko(\.xz|\.zst|\.gz)?$/.test(entry.name)) {
      found.set(canonical(entry.name.replace(/\.ko.*$/, '')), path);
    }
  }
  return found;
}

async function decompress(path: string): Promise<string> {
  if (path.endsWith('.xz')) await run('xz', ['--decompress', path]);
  else if (path.endsWith('.zst')) await run('zstd', ['--decompress', '--rm', '--quiet', path]);
  else if (path.endsWith('.gz')) await run('gzip', ['--decompress', path]);
  return path.replace(/\.(xz|zst|gz)$/, '');
}

/**
 * Copies the wanted modules and what they depend on from an unpacked package to `target`, uncompressed, with
 * modprobe's index. A guest without KVM takes longer over one compressed module than over all plain ones.
 * Gives the early modules' paths below `target` in loading order.
 */
export async function installModules(unpacked: string, target: string, version: string): Promise<string[]> {
  const source = join(unpacked, 'usr/lib/modules', version);
  const available = findModules(join(source, 'kernel'));
  const destination = join(target, 'lib/modules', version, 'kernel');
  mkdirSync(destination, { recursive: true });

  const installed = new Map<string, { path: string; dependencies: string[] }>();
  const install = async (name: string): Promise<void> => {
    const path = available.get(name);
    if (path === undefined || installed.has(name)) return;
    const plain = await decompress(path);
    const copy = join(destination, basename(plain));
    renameSync(plain, copy);
    const told = (await run('modinfo', ['-F', 'depends', copy])).toString();
    const dependencies = told.trim().split(',').filter(Boolean).map(canonical);
    installed.set(name, { path: copy, dependencies });
    for (const dependency of dependencies) await install(dependency);
  };
  for (const name of WANTED_MODULES) await install(name);

  for (const name of ['vduse', 'virtio_vdpa', ...EARLY_MODULES]) {
    if (!installed.has(name)) {
      throw new LabError(`The kernel ${version} has no module ${name}: the lab can't work with it.`);
    }
  }

  const order: string[] = [];
  const load = (name: string) => {
    const module = installed.get(name);
    if (module === undefined || order.includes(module.path)) return;
    module.dependencies.forEach(load);
    order.push(module.path);
  };
  EARLY_MODULES.forEach(load);

  for (const name of ['modules.builtin', 'modules.builtin.modinfo', 'modules.order']) {
    // Without the list of built-in modules, modprobe fails for what is always there, such as fuse.
    const [from, to] = [join(source, name), join(target, 'lib/modules', version, name)];
    if (existsSync(from)) copyFileSync(from, to);
    else writeFileSync(to, '');
  }
  await run('depmod', ['--basedir', target, version]);
  return order.map((path) => path.slice(target.length + 1));
}
