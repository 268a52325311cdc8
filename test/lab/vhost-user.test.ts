/** The daemon on this host, virtual machines on its vhost-user sockets. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import { runInLab } from '../../lab/run.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { fioCommand } from './guest/disks.js';
import { QmpClient } from './guest/qmp.js';
import { RunningProgram, waitFor } from './guest/shell.js';
import { HostDeeds } from './host-deeds.js';
import { reserveHugePages } from './huge-pages.js';
import { runScenario } from './run-scenario.js';

const MiB = 1 << 20;
const directory = mkdtempSync(join(tmpdir(), 'vduse-lab-vhost-user-'));
after(() => rmSync(directory, { recursive: true }));
const place = (name: string): string => join(directory, name);

function makeImage(name: string, size: number): string {
  return makeSparseFile(place(name), size);
}

async function startDaemon(...args: string[]): Promise<RunningProgram> {
  const program = fileURLToPath(new URL('../../src/cli/vduse-storage-daemon.js', import.meta.url));
  const daemon = new RunningProgram(process.execPath, ['--enable-source-maps', program, ...args]);
  await daemon.says(/ready/);
  return daemon;
}

const exportOn = (id: string, node: string, more: string): string[] => [
  '--export',
  `vhost-user-blk,id=${id},node-name=${node},addr.type=unix,addr.path=${place(id)}.sock,${more}`,
];

const device = (id: string, more: string): string[] => [
  ...['-chardev', `socket,id=${id}-socket,path=${place(id)}.sock`],
  ...['-device', `vhost-user-blk-pci,id=${id},chardev=${id}-socket,${more}`],
];

const port = (id: string, number: number): string[] => [
  '-device',
  `pcie-root-port,id=${id},chassis=${number},slot=${number}`,
];

test('a guest with four queues: data, resize, hot-unplug and hot-plug', async (context) => {
  const image = makeImage('disk.img', 128 * MiB);
  const daemon = await startDaemon(
    ...['--chardev', `socket,id=qmp,path=${place('daemon.qmp')},server,nowait`, '--monitor', 'qmp'],
    ...['--blockdev', `file,node-name=disk,filename=${image}`],
    ...exportOn('first', 'disk', 'writable=on,num-queues=4'),
    ...exportOn('second', 'disk', 'num-queues=1'),
  );
  const qmp = await QmpClient.connect(place('daemon.qmp'));
  let machine: Promise<QmpClient> | undefined;
  const deeds = new HostDeeds({
    resize: () => qmp.execute('block_resize', { 'node-name': 'disk', size: 192 * MiB }),
    unplug: async () => {
      machine ??= QmpClient.connect(place('machine.qmp'));
      const { events } = await machine;
      const before = events.length;
      await (await machine).execute('device_del', { id: 'first' });
      await waitFor('the device is deleted', () => events.slice(before).includes('DEVICE_DELETED'), 60_000);
    },
    plug: async () =>
      (await machine!).execute('device_add', {
        driver: 'vhost-user-blk-pci',
        id: 'first',
        chardev: 'first-socket',
        bus: 'port1',
        'num-queues': 4,
      }),
  });
  try {
    await runScenario(context, {
      script: new URL('guest/vhost-user.js', import.meta.url),
      smp: 4,
      sharedMemory: true,
      qemuArguments: [
        ...port('port1', 1),
        ...device('first', 'bus=port1,num-queues=4'),
        ...device('second', 'num-queues=1'),
        ...['-qmp', `unix:${place('machine.qmp')},server=on,wait=off`],
      ],
      onOutput: deeds.onOutput,
    });
    assert.deepEqual(deeds.failures, []);
  } finally {
    (await machine)?.close();
    qmp.close();
    const { status, output } = await daemon.end();
    assert.equal(status, 0, output);
  }
  const check = spawnSync('e2fsck', ['-fn', image], { encoding: 'utf8' });
  assert.equal(check.status, 0, check.stdout + check.stderr);
});

test('a guest whose memory is huge pages: a file system, verified', async (context) => {
  const memoryMib = 512;
  const release = reserveHugePages(memoryMib * MiB);
  if (typeof release === 'string') {
    context.skip(release);
    return;
  }
  const image = makeImage('huge.img', 64 * MiB);
  try {
    const daemon = await startDaemon(
      ...['--blockdev', `file,node-name=huge-node,filename=${image}`],
      ...exportOn('huge', 'huge-node', 'writable=on,num-queues=2'),
    );
    let mapsHugePages = false;
    try {
      const { exitStatus, output } = await runInLab({
        command: `
          set -e
          modprobe -a virtio_blk ext4
          mkfs.ext4 -q /dev/vda
          mount /dev/vda /mnt
          ${fioCommand} --group_reporting --allow_file_create=1 --directory=/mnt --rw=randwrite --bsrange=4k-256k \
            --size=12M --numjobs=2 --iodepth=16 --end_fsync=1 --verify=crc32c --verify_fatal=1
          umount /mnt`,
        memoryMib,
        smp: 2,
        sharedMemory: 'huge',
        qemuArguments: device('huge', 'num-queues=2'),
        onOutput: () => {
          mapsHugePages ||= /KernelPageSize: +2048 kB/.test(
            readFileSync(`/proc/${daemon.pid}/smaps`, 'utf8'),
          );
        },
      });
      assert.equal(exitStatus, 0, output);
    } finally {
      const { status, output } = await daemon.end();
      assert.equal(status, 0, output);
    }
    assert.ok(mapsHugePages, 'the daemon had no huge pages in its memory');
  } finally {
    release();
  }
  const check = spawnSync('e2fsck', ['-fn', image], { encoding: 'utf8' });
  assert.equal(check.status, 0, check.stdout + check.stderr);
});

test('two guests on one daemon, each with its disk, and one that is killed', async () => {
  const names = ['left', 'right'];
  const daemon = await startDaemon(
    ...names.flatMap((name) => [
      ...['--blockdev', `file,node-name=${name}-node,filename=${makeImage(name, 64 * MiB)}`],
      ...exportOn(name, `${name}-node`, 'writable=on,num-queues=2'),
    ]),
  );
  const boot = (name: string, command: string, signal?: AbortSignal) =>
    runInLab({
      command,
      memoryMib: 512,
      sharedMemory: true,
      qemuArguments: device(name, 'num-queues=2'),
      ...(signal === undefined ? {} : { signal }),
    });
  const work = (name: string): string =>
    [
      'set -e',
      'modprobe -a virtio_blk ext4',
      'mkfs.ext4 -q /dev/vda',
      'mount /dev/vda /mnt',
      `for n in 1 2 3; do head -c 8M /dev/urandom >/mnt/$n; sha256sum /mnt/$n >>/tmp/sums; done`,
      'umount /mnt; mount /dev/vda /mnt',
      `sha256sum -c --quiet /tmp/sums; umount /mnt; echo ${name} is well`,
    ].join('\n');
  try {
    const results = await Promise.all(names.map((name) => boot(name, work(name))));
    for (const [n, { exitStatus, output }] of results.entries()) {
      assert.equal(exitStatus, 0, output);
      assert.match(output, new RegExp(`${names[n]} is well`));
    }
    const end = new AbortController();
    const killed = boot(
      'left',
      'modprobe virtio_blk; while :; do dd if=/dev/urandom of=/dev/vda bs=64k; done',
      end.signal,
    );
    setTimeout(() => end.abort(), 8000);
    await assert.rejects(killed);
    await sleep(100);
    const again = await boot('left', work('left'));
    assert.equal(again.exitStatus, 0, again.output);
  } finally {
    const { status, output } = await daemon.end();
    assert.equal(status, 0, output);
  }
});
