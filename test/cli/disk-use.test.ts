import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { it } from 'node:test';
import { describeUse, deviceOpeners, diskUses } from '../../src/cli/support/disk-use.js';
import { makeTempDir } from '../support/temp-dir.js';

function makeRoot(
  files: Readonly<Record<string, string>>,
  links: Readonly<Record<string, string>> = {},
): string {
  const root = makeTempDir();
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  for (const [path, target] of Object.entries(links)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    symlinkSync(target, join(root, path));
  }
  return root;
}

const disk = {
  'sys/block/vda/dev': '254:0\n',
  'sys/block/vda/vda1/dev': '254:1\n',
  'sys/block/vda/queue/rotational': '1\n',
  'sys/block/vdaa/dev': '254:416\n',
};

it('a disk that nobody uses', () => {
  const root = makeRoot({ ...disk, 'proc/self/mountinfo': '', 'proc/swaps': 'Filename Type\n' });
  assert.deepEqual(diskUses('/dev/vda', root), []);
});

it('a machine that shows nothing', () => {
  assert.deepEqual(diskUses('/dev/vda', makeRoot({})), []);
});

it('mounts of the disk and its partitions, by device number or by name, and of no other disk', () => {
  const mountinfo = [
    '22 1 0:21 / /proc rw shared:1 - proc proc rw',
    '31 1 254:1 / /mnt/with\\040blank rw,noatime shared:5 master:2 - ext4 /dev/root rw',
    '32 1 0:45 /sub /mnt/btrfs rw - btrfs /dev/vda rw,space_cache',
    '33 1 254:416 / /mnt/other rw - ext4 /dev/vdaa rw',
  ].join('\n');
  const uses = diskUses('/dev/vda', makeRoot({ ...disk, 'proc/self/mountinfo': mountinfo }));
  assert.deepEqual(uses.map(describeUse), [
    '/dev/vda1 is mounted at /mnt/with blank',
    '/dev/vda is mounted at /mnt/btrfs',
  ]);
});

it('swap space, devices built on it, and processes that have it open', () => {
  const root = makeRoot(
    {
      ...disk,
      'proc/swaps': 'Filename\t\tType\tSize\n/dev/vda1   partition 1000\n',
      'sys/block/vda/holders/dm-0': '',
      'proc/17/comm': 'fio\n',
      'proc/18/comm': 'cat\n',
    },
    { 'proc/17/fd/3': '/dev/vda', 'proc/18/fd/3': '/dev/vdaa', [`proc/${process.pid}/fd/9`]: '/dev/vda' },
  );
  assert.deepEqual(diskUses('/dev/vda', root).map(describeUse), [
    '/dev/vda1 is swap space',
    '/dev/vda is part of /dev/dm-0',
    '/dev/vda is open in fio (process 17)',
  ]);
});

it('who has a character device open', () => {
  const root = makeRoot({ 'proc/17/comm': 'qemu\n' }, { 'proc/17/fd/3': '/dev/vhost-vdpa-0' });
  assert.deepEqual(deviceOpeners('/dev/vhost-vdpa-0', root).map(describeUse), [
    '/dev/vhost-vdpa-0 is open in qemu (process 17)',
  ]);
});
