/** What a process and the kernel hold for VDUSE devices, to prove that rounds of attaching leave nothing. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

export interface Holdings {
  /** What each descriptor of this process names. */
  readonly descriptors: readonly string[];
  readonly maps: number;
  /** Of files that have no name on a disk: devices' memory, rings, memory files. */
  readonly specialMaps: readonly string[];
  readonly threads: number;
  readonly residentMiB: number;
  readonly virtualMiB: number;
  readonly devices: readonly string[];
  readonly nodes: readonly string[];
  readonly disks: readonly string[];
}

function status(field: string): number {
  const match = new RegExp(`^${field}:\\s*(\\d+)`, 'm').exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(match?.[1]);
}

function descriptorTargets(): string[] {
  const targets: string[] = [];
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      // Sockets and pipes have numbers, which tell nothing.
      targets.push(readlinkSync(`/proc/self/fd/${fd}`).replace(/\[\d+\]/, ''));
    } catch {
      // The one that lists them.
    }
  }
  return targets.sort();
}

/** What the maps of devices, rings and memory files name. */
function specialMaps(maps: readonly string[]): string[] {
  const names = maps.map((line) => line.split(/\s+/)[5] ?? '');
  return names
    .filter((name) => /^(anon_inode:|\/dev\/|\/memfd:|.*vduse)/.test(name) && !name.endsWith('.node'))
    .sort();
}

function names(directory: string): string[] {
  return readdirSync(directory).filter((name) => name !== 'control');
}

export function takeStock(): Holdings {
  const maps = readFileSync('/proc/self/maps', 'latin1').trim().split('\n');
  return {
    descriptors: descriptorTargets(),
    maps: maps.length,
    specialMaps: specialMaps(maps),
    threads: readdirSync('/proc/self/task').length,
    residentMiB: Math.round(status('VmRSS') / 1024),
    virtualMiB: Math.round(status('VmSize') / 1024),
    devices: names('/sys/class/vduse'),
    nodes: names('/dev/vduse'),
    disks: names('/sys/block').filter((name) => name.startsWith('vd')),
  };
}
