/** The command vduse, on a machine that has not loaded a module yet. */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';

import { type CheckContext, type Figures, runChecks } from './checks.js';
import { startExport, vduse } from './commands.js';
import { fio, fioCommand, MiB, makeImage, makeRecordsFile, mount, waitForSize } from './disks.js';
import { checkRecords, lastAcknowledged } from './records.js';
import { attempt, sh, start, startScript, waitFor } from './shell.js';

function assertNothingLeft(): void {
  const left = readdirSync('/dev/vduse').filter((name) => name !== 'control');
  assert.deepEqual(left, [], 'devices left in /dev/vduse');
}

interface Listed {
  readonly name: string;
  readonly path: string | null;
  readonly size: number | null;
  readonly state: string;
}

async function list(): Promise<Listed[]> {
  const { status, output } = await vduse('list', '--json');
  assert.equal(status, 0, output);
  return JSON.parse(output) as Listed[];
}

/** From nothing to a disk and back. */
async function firstSteps(context: CheckContext): Promise<Figures> {
  assert.equal(existsSync('/dev/vduse'), false, 'the machine was to have no modules loaded');
  const created = await vduse('create', '/tmp/first.img', '64M');
  assert.equal(created.status, 0, created.output);
  const { program, path } = await startExport(context, ['/tmp/first.img']);
  assert.ok(statSync(path).isBlockDevice());
  assert.equal(readFileSync(`/sys/block/${basename(path)}/serial`, 'utf8').trim(), 'first');
  const [listed] = await list();
  assert.deepEqual(
    { name: listed.name, path: listed.path, size: listed.size, state: listed.state },
    { name: 'first', path, size: 64 * MiB, state: 'served' },
  );
  await fio(`--filename=${path} --size=4M --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c`);
  const resized = await vduse('resize', 'first', '+64M');
  assert.equal(resized.status, 0, resized.output);
  await waitForSize(basename(path), 128 * MiB);
  const doctor = await vduse('doctor');
  assert.equal(doctor.status, 0, doctor.output);
  const { status, output } = await program.end('SIGINT');
  assert.equal(status, 0, output);
  assert.equal(existsSync(path), false);
  assertNothingLeft();
  return { 'said at the end': output.trim().split('\n').at(-1) ?? '' };
}

/** SIGTERM while the disk is mounted and written, by somebody who doesn't let go of it. */
async function terminatedUnderLoad(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/term.img', 128 * MiB);
  const { program, path } = await startExport(context, [image, '--queues', '2']);
  await sh(`mkfs.ext4 -q -F ${path} && mkdir -p /mnt/term && mount ${path} /mnt/term`);
  context.after(() => attempt('umount -l /mnt/term'));
  makeRecordsFile('/mnt/term/records', 16 * MiB);
  const line = `exec ${fioCommand} --directory=/mnt/term --allow_file_create=1 --rw=randrw --bs=16k --size=4M --iodepth=8 --time_based --runtime=100 --fsync=32`;
  const load = await start('/bin/sh', ['-c', line]);
  const writer = await startScript('record-writer.js', ['/mnt/term/records', '4096']);
  await writer.says(/acknowledged 20$/m, 60_000);
  const started = performance.now();
  const { status, output } = await program.end('SIGTERM');
  const endMs = Math.round(performance.now() - started);
  assert.equal(status, 0, output);
  assertNothingLeft();
  const last = lastAcknowledged((await writer.finished).output);
  assert.notEqual((await load.finished).status, 0, 'fio did not notice that its disk went away');
  await sh('umount -l /mnt/term');
  await sh('modprobe loop');
  const unmount = await mount(context, `-o loop ${image}`, '/mnt/image');
  checkRecords('/mnt/image/records', last);
  await unmount();
  await sh(`e2fsck -fn ${image}`);
  return { 'ms from SIGTERM to end': endMs, 'records acknowledged': last + 1 };
}

/** Killed with a reader on its disk: told of, cleared away, and the reader gets an error instead of waiting for ever. */
async function leftBehind(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/left.img', 32 * MiB);
  const { program, path } = await startExport(context, [image]);
  const reader = await start('/bin/sh', [
    '-c',
    `sleep 3; exec dd if=${path} of=/dev/null bs=1M skip=8 count=1 iflag=direct`,
  ]);
  await program.end('SIGKILL');
  assert.deepEqual(
    (await list()).map(({ name, state }) => [name, state]),
    [['left', 'left-behind']],
  );
  const again = await vduse('export', image);
  assert.equal(again.status, 1);
  assert.match(again.output, /left behind[\s\S]*vduse remove left/, 'the hint that helps');
  await waitFor(
    'the reader waits',
    async () => (await attempt('ps -eo stat,args | grep -q "^D.*dd if"')).status === 0,
  );
  const started = performance.now();
  const removed = await vduse('remove', 'left');
  const removeMs = Math.round(performance.now() - started);
  assert.equal(removed.status, 0, removed.output);
  const { status, output } = await reader.finished;
  assert.notEqual(status, 0, 'a read that nobody served succeeded');
  assert.match(output, /Input\/output error/);
  assertNothingLeft();
  assert.deepEqual(await list(), []);
  return { 'remove ms': removeMs, said: removed.output.trim() };
}

/** What is in use is not taken away by mistake, and an image is exported once. */
async function refusals(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/use.img', 32 * MiB);
  const { program, path } = await startExport(context, [image]);
  const second = await vduse('export', image, '--name', 'second');
  assert.equal(second.status, 1);
  assert.match(second.output, /lock/);
  await sh(`mkfs.ext4 -q -F ${path}`);
  const unmount = await mount(context, path, '/mnt/use');
  const refused = await vduse('remove', 'use');
  assert.equal(refused.status, 1);
  assert.match(refused.output, /\/mnt\/use/, 'the place where it is mounted');
  await unmount();
  const removed = await vduse('remove', 'use');
  assert.equal(removed.status, 0, removed.output);
  const { status, output } = await program.finished;
  assert.equal(status, 0, output);
  assertNothingLeft();
  return {};
}

await runChecks([
  { name: 'create, export, list, resize, doctor, Ctrl-C', run: firstSteps, timeoutMs: 120_000 },
  { name: 'SIGTERM under load, with the disk mounted', run: terminatedUnderLoad, timeoutMs: 120_000 },
  { name: 'left behind by SIGKILL with a reader waiting', run: leftBehind },
  { name: 'what is in use is refused', run: refusals },
]);
