/** Who uses a disk of this machine, as procfs and sysfs tell. `root` is where those are looked for. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { basename, join } from 'node:path';

export type DiskUse =
  | { readonly kind: 'mount'; readonly directory: string; readonly device: string }
  | { readonly kind: 'swap'; readonly device: string }
  /** A device built on it: device mapper, RAID. */
  | { readonly kind: 'holder'; readonly device: string; readonly holder: string }
  | { readonly kind: 'open'; readonly device: string; readonly pid: number; readonly command: string };

/** Processes whose descriptors are looked through. */
const PROCESSES_SHOWN_MAX = 8;

/** The disk's uses and its partitions'. Of processes only those that this process may look into. */
export function diskUses(path: string, root = '/'): DiskUse[] {
  const devices = devicesOf(path, root);
  return [
    ...mounts(devices, root),
    ...swaps(devices, root),
    ...holders(devices, root),
    ...openers(
      devices.map((device) => device.path),
      root,
    ),
  ];
}

/** The processes that have a character device such as /dev/vhost-vdpa-0 open. */
export function deviceOpeners(path: string, root = '/'): DiskUse[] {
  return openers([path], root);
}

export function describeUse(use: DiskUse): string {
  switch (use.kind) {
    case 'mount':
      return `${use.device} is mounted at ${use.directory}`;
    case 'swap':
      return `${use.device} is swap space`;
    case 'holder':
      return `${use.device} is part of ${use.holder}`;
    case 'open':
      return `${use.device} is open in ${use.command} (process ${use.pid})`;
  }
}

interface Device {
  /** `/dev/vda1`. */
  readonly path: string;
  /** `254:1`, as mountinfo has it. */
  readonly number: string;
  /** Below root. */
  readonly sysfs: string;
}

function devicesOf(path: string, root: string): Device[] {
  const disk = basename(path);
  const directory = `sys/block/${disk}`;
  const partitions = list(root, directory).filter((name) => name.startsWith(disk));
  return [
    { path: `/dev/${disk}`, sysfs: directory },
    ...partitions.map((name) => ({ path: `/dev/${name}`, sysfs: `${directory}/${name}` })),
  ].map((device) => ({ ...device, number: read(root, `${device.sysfs}/dev`).trim() }));
}

/** proc(5): mount id, parent, device number, root, mount point, options, optional fields, "-", type, source, options. */
function mounts(devices: readonly Device[], root: string): DiskUse[] {
  const found: DiskUse[] = [];
  for (const line of read(root, 'proc/self/mountinfo').split('\n')) {
    const fields = line.split(' ');
    const source = fields[fields.indexOf('-') + 2];
    // btrfs mounts have device numbers of their own; their source names the disk.
    const device = devices.find(({ number, path }) => number === fields[2] || path === source);
    if (device !== undefined && fields.length > 4) {
      found.push({ kind: 'mount', device: device.path, directory: unescapeMountPath(fields[4]) });
    }
  }
  return found;
}

/** Blanks, tabs, newlines and backslashes are written as `\040` and so on. */
function unescapeMountPath(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

function swaps(devices: readonly Device[], root: string): DiskUse[] {
  const used = read(root, 'proc/swaps')
    .split('\n')
    .map((line) => line.split(/\s+/)[0]);
  return devices
    .filter((device) => used.includes(device.path))
    .map((device) => ({ kind: 'swap', device: device.path }));
}

function holders(devices: readonly Device[], root: string): DiskUse[] {
  return devices.flatMap((device) =>
    list(root, `${device.sysfs}/holders`).map((holder): DiskUse => {
      return { kind: 'holder', device: device.path, holder: `/dev/${holder}` };
    }),
  );
}

function openers(paths: readonly string[], root: string): DiskUse[] {
  const found: DiskUse[] = [];
  for (const pid of list(root, 'proc').filter((name) => /^\d+$/.test(name))) {
    const links = list(root, `proc/${pid}/fd`).map((fd) => link(root, `proc/${pid}/fd/${fd}`));
    const device = paths.find((path) => links.includes(path));
    if (device !== undefined && Number(pid) !== process.pid && found.length < PROCESSES_SHOWN_MAX) {
      found.push({
        kind: 'open',
        device,
        pid: Number(pid),
        command: read(root, `proc/${pid}/comm`).trim(),
      });
    }
  }
  return found;
}

/** What has gone, or may not be read, is nothing: processes and partitions come and go. */
function orNothing<T>(nothing: T, get: () => T): T {
  try {
    return get();
  } catch {
    return nothing;
  }
}

function list(root: string, path: string): string[] {
  return orNothing([], () => readdirSync(join(root, path)));
}

function read(root: string, path: string): string {
  return orNothing('', () => readFileSync(join(root, path), 'utf8'));
}

function link(root: string, path: string): string {
  return orNothing('', () => readlinkSync(join(root, path)));
}
