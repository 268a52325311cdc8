/** vduse-storage-daemon with the command line of a qemu-storage-daemon, controlled through QMP. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';

import { vdpaBusDevice } from '../../../src/native/vdpa-bus.js';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import { startDaemon } from './commands.js';
import {
  blockAttribute,
  dropCaches,
  fio,
  fioCommand,
  loadModules,
  MiB,
  makeImage,
  mount,
  waitForSize,
  withScsiDisk,
} from './disks.js';
import { QmpClient } from './qmp.js';
import { attempt, type RunningProgram, sh, start, waitFor } from './shell.js';

const qmpPath = '/tmp/qmp.sock';

/** What a user of qemu-storage-daemon types, but for the disk. */
function seedArguments(disk: string): string[] {
  const line =
    '--chardev socket,id=charmonitor,path=/tmp/qmp.sock,server,nowait --monitor chardev=charmonitor ' +
    `--blockdev driver=host_device,cache.direct=on,aio=native,filename=${disk},node-name=disk0 ` +
    '--export vduse-blk,id=test,node-name=disk0,writable=on,vduse-id=1,num-queues=16,queue-size=128';
  return line.split(' ');
}

async function connectQmp(context: CheckContext, daemon: RunningProgram): Promise<QmpClient> {
  await waitFor(
    `the QMP socket is there (${daemon.output})`,
    () => existsSync(qmpPath) || !daemon.running,
    60_000,
  );
  const client = await QmpClient.connect(qmpPath);
  context.after(() => client.close());
  return client;
}

/** Puts the device on the bus as its user does. Returns the path of its disk. */
async function attach(name: string): Promise<string> {
  await sh(`vdpa dev add name ${name} mgmtdev vduse`);
  const path = vdpaBusDevice(name)?.blockDevice;
  assert.ok(path !== undefined, `${name} is attached, but has no disk`);
  return path;
}

function assertNothingLeft(): void {
  assert.deepEqual(
    readdirSync('/dev/vduse').filter((name) => name !== 'control'),
    [],
  );
  assert.equal(existsSync(qmpPath), false, 'the QMP socket was left');
}

/** From the command line to `quit`: attach, file system, verified data, resize, delete. */
async function seedCommandLine(context: CheckContext): Promise<Figures> {
  const backing = await withScsiDisk(context, 128);
  const daemon = await startDaemon(context, seedArguments(backing));
  const qmp = await connectQmp(context, daemon);
  assert.deepEqual(await qmp.execute('query-block-exports'), [
    { id: 'test', type: 'vduse-blk', 'node-name': 'disk0', 'shutting-down': false },
  ]);
  const path = await attach('1');
  const block = basename(path);
  const shown = await sh('vdpa dev show 1');
  assert.match(shown, /1: type block mgmtdev vduse vendor_id \d+ max_vqs 16 max_vq_size 128/);
  await sh(`mkfs.ext4 -q -F ${path} 98304`);
  const unmount = await mount(context, path, '/mnt/seed');
  const jobs =
    '--directory=/mnt/seed --allow_file_create=1 --rw=randwrite --bsrange=4k-64k --size=6M --numjobs=2 --iodepth=16 --end_fsync=1';
  const { writes } = await fio(`${jobs} --verify=crc32c --verify_fatal=1`);
  const sums = await sh('cd /mnt/seed && sha256sum load.*');

  const tooLarge = await qmp.ask('block_resize', { 'node-name': 'disk0', size: 256 * MiB });
  assert.match(tooLarge.error?.desc ?? '', /256|268435456/, 'a disk can not become larger than its device');
  await qmp.execute('block_resize', { 'node-name': 'disk0', size: 112 * MiB });
  await waitForSize(block, 112 * MiB);

  const busy = await qmp.ask('block-export-del', { id: 'test' });
  assert.equal(busy.error?.class, 'GenericError', 'an export on the bus can not be deleted in mode safe');
  await unmount();
  await sh('vdpa dev del 1');
  await qmp.execute('block-export-del', { id: 'test' });
  await waitFor('BLOCK_EXPORT_DELETED', () => qmp.events.includes('BLOCK_EXPORT_DELETED'));
  assert.deepEqual(await qmp.execute('query-block-exports'), []);
  await qmp.execute('quit');
  const { status, output } = await daemon.finished;
  assert.equal(status, 0, output);
  assertNothingLeft();

  await dropCaches();
  await sh(`e2fsck -fn ${backing}`);
  await mount(context, `-o ro ${backing}`, '/mnt/seed');
  assert.equal(await sh('cd /mnt/seed && sha256sum load.*'), sums, 'files differ on the disk below');
  return { 'fio writes': writes, shown: shown.split('\n')[0] };
}

/** An export is added, grown and deleted through QMP; the node below is a file. */
async function throughQmp(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/qmp.img', 32 * MiB);
  const daemon = await startDaemon(context, [
    '--chardev',
    `socket,id=qmp,path=${qmpPath},server=on,wait=off`,
    '--monitor',
    'chardev=qmp',
  ]);
  const qmp = await connectQmp(context, daemon);
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'n', filename: image, discard: 'unmap' });
  await qmp.execute('block-export-add', {
    type: 'vduse-blk',
    id: 'e',
    'node-name': 'n',
    name: 'qmp0',
    writable: true,
    serial: 'made-by-qmp',
    'irq-affinity': '0',
  });
  const affinity = readFileSync('/sys/class/vduse/qmp0/vq0/irq_cb_affinity', 'utf8').trim();
  assert.equal(Number.parseInt(affinity.split(',').at(-1) ?? '', 16), 1);
  const path = await attach('qmp0');
  const block = basename(path);
  assert.equal(readFileSync(`/sys/block/${block}/serial`, 'utf8').trim(), 'made-by-qmp');
  assert.match((await attempt(`qemu-io -f raw -c 'write 0 4k' ${image}`)).output, /lock/i);
  await qmp.execute('block_resize', { 'node-name': 'n', size: 64 * MiB });
  await waitForSize(block, 64 * MiB);
  const grown = blockAttribute(block, 'size');
  await fio(`--filename=${path} --offset=32M --size=4M --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c`);
  assert.notEqual((await qmp.ask('blockdev-del', { 'node-name': 'n' })).error, undefined, 'a node in use');
  // Hard: the disk goes although it is attached.
  await qmp.execute('block-export-del', { id: 'e', mode: 'hard' });
  await waitFor('the disk is gone', () => !existsSync(path));
  await qmp.execute('blockdev-del', { 'node-name': 'n' });
  await qmp.execute('quit');
  const { status, output } = await daemon.finished;
  assert.equal(status, 0, output);
  assertNothingLeft();
  return { 'MiB after block_resize': grown / 2048 };
}

/** In the background, and told to end while its disk is written. */
async function terminatedUnderLoad(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/term.img', 64 * MiB);
  const daemon = await startDaemon(context, [
    ...[
      '--blockdev',
      `driver=file,node-name=n,filename=${image}`,
      '--pidfile',
      '/run/vsd.pid',
      '--daemonize',
    ],
    ...['--export', 'vduse-blk,id=e,node-name=n,writable=on,name=term,num-queues=2'],
  ]);
  // The one in the foreground ends when the other one is ready.
  const { status, output } = await daemon.finished;
  assert.equal(status, 0, output);
  const pid = readFileSync('/run/vsd.pid', 'utf8').trim();
  context.after(() => attempt(`kill -9 ${pid}`));
  const path = await attach('term');
  const load = await start('/bin/sh', [
    '-c',
    `exec ${fioCommand} --filename=${path} --size=32M --rw=randrw --bs=16k --iodepth=16 --time_based --runtime=100`,
  ]);
  const sectors = (): number =>
    Number(
      readFileSync(`/sys/block/${basename(path)}/stat`, 'utf8')
        .trim()
        .split(/\s+/)[4],
    );
  await waitFor('fio writes', () => sectors() > 100, 60_000);
  const started = performance.now();
  await sh(`kill ${pid}`);
  await waitFor('the daemon has ended', () => !existsSync(`/proc/${pid}`), 60_000);
  const endMs = Math.round(performance.now() - started);
  assert.notEqual((await load.finished).status, 0, 'fio did not notice that its disk went away');
  assertNothingLeft();
  assert.equal(existsSync('/run/vsd.pid'), false, 'the pid file was left');
  return { 'ms from SIGTERM to end': endMs };
}

await loadModules('loop');
await runChecks([
  {
    name: "a qemu-storage-daemon's command line, from start to quit",
    run: seedCommandLine,
    timeoutMs: 120_000,
  },
  { name: 'exports made, grown and deleted through QMP', run: throughQmp },
  { name: 'in the background, ended by SIGTERM under load', run: terminatedUnderLoad },
]);
