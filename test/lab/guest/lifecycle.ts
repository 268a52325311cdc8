/** Devices come and go, in order and not, and nothing of them stays. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';

import { VduseError } from '../../../src/base/errors.js';
import { exportDisk } from '../../../src/daemon/export-disk.js';
import { vdpaBusDevice } from '../../../src/native/vdpa-bus.js';
import { linuxVduse } from '../../../src/native/vduse-kernel.js';
import { VduseControl } from '../../../src/transport/vduse/control.js';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import {
  fio,
  guestLogger,
  loadModules,
  MiB,
  makeImage,
  slowDownScsiDisk,
  withDisk,
  withScsiDisk,
} from './disks.js';
import { type Holdings, takeStock } from './holdings.js';
import { attempt, type RunningProgram, sh, startScript, waitFor } from './shell.js';

/** Rounds that let a process grow to its size, before the first count. */
const warmUp = 10;

/** Throws where more is held than before. `slackMiB`: what JavaScript's own heaps may have grown by. */
function assertNothingLeft(before: Holdings, rounds: number, slackMiB: number): Figures {
  const after = takeStock();
  assert.deepEqual(after.descriptors, before.descriptors, 'descriptors');
  assert.deepEqual(after.devices, before.devices, 'devices of /sys/class/vduse');
  assert.deepEqual(after.nodes, before.nodes, 'nodes of /dev/vduse');
  assert.deepEqual(after.disks, before.disks, 'disks');
  assert.equal(after.threads, before.threads, 'threads');
  assert.deepEqual(after.specialMaps, before.specialMaps, 'maps of devices, rings and memory files');
  // A queue's tables, which have no name, take 4 MiB.
  const grown = after.virtualMiB - before.virtualMiB;
  assert.ok(grown <= slackMiB, `address space: ${grown} MiB more after ${rounds} rounds`);
  return {
    rounds,
    descriptors: `${before.descriptors.length} -> ${after.descriptors.length}`,
    threads: `${before.threads} -> ${after.threads}`,
    maps: `${before.maps} -> ${after.maps}`,
    'of them devices and rings': `${before.specialMaps.length} -> ${after.specialMaps.length}`,
    'virtual MiB': `${before.virtualMiB} -> ${after.virtualMiB}`,
    'resident MiB': `${before.residentMiB} -> ${after.residentMiB}`,
    'devices left': after.devices.length - before.devices.length,
  };
}

/** Reads a block of the disk without stopping this process, which serves it. */
async function readBlock(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    const { bytesRead } = await file.read(Buffer.alloc(4096), 0, 4096, 1 * MiB);
    assert.equal(bytesRead, 4096);
  } finally {
    await file.close();
  }
}

async function exportRounds(rounds: number): Promise<void> {
  const image = '/tmp/rounds.img';
  for (let round = 0; round < rounds; round++) {
    const disk = await exportDisk(image, { name: 'rounds', queues: 2, logger: guestLogger });
    assert.ok(disk.path !== undefined);
    await readBlock(disk.path);
    await disk.close();
  }
}

/** Another disk keeps the queue threads: starting one takes an emulated processor seconds. */
async function hundredRounds(context: CheckContext): Promise<Figures> {
  makeImage('/tmp/rounds.img', 16 * MiB);
  const other = await exportDisk(makeImage('/tmp/other.img', 16 * MiB), { queues: 2, attach: false });
  context.after(() => other.close());
  await exportRounds(warmUp);
  const before = takeStock();
  await exportRounds(100);
  return assertNothingLeft(before, 100, 200);
}

/** The threads start with the first disk and end with the last one. */
async function threadRounds(): Promise<Figures> {
  const rounds = 3;
  makeImage('/tmp/rounds.img', 16 * MiB);
  await exportRounds(1);
  const before = takeStock();
  await exportRounds(rounds);
  return assertNothingLeft(before, rounds, 200);
}

/** The device stays open; the bus, as the user's command has it, takes it off and puts it on again. */
async function reattachRounds(context: CheckContext): Promise<Figures> {
  const rounds = 20;
  const image = makeImage('/tmp/again.img', 16 * MiB);
  const { disk, path } = await withDisk(context, image, { name: 'again', queues: 2 });
  const round = async (): Promise<void> => {
    await sh('vdpa dev del again');
    assert.equal(existsSync(path), false);
    await sh('vdpa dev add name again mgmtdev vduse');
    await waitFor(
      `${path} is back`,
      () => statSync(path, { throwIfNoEntry: false })?.isBlockDevice() === true,
    );
    await readBlock(path);
  };
  for (let n = 0; n < 3; n++) {
    await round();
  }
  const before = takeStock();
  for (let n = 0; n < rounds; n++) {
    await round();
  }
  const figures = assertNothingLeft(before, rounds, 120);
  await fio(`--filename=${path} --rw=randwrite --bs=4k --size=4M --iodepth=16 --verify=crc32c`);
  assert.equal(disk.statistics.errors, 0);
  return figures;
}

/** A process has nothing that keeps it, and nothing that ends it early, once it has closed its disk. */
async function processEnds(): Promise<Figures> {
  const image = makeImage('/tmp/ends.img', 16 * MiB);
  const child = await startScript('attach-and-close.js', [image, 'ends']);
  await child.says(/^exported \/dev\/vd/m);
  const started = performance.now();
  const { status, output } = await child.end('SIGTERM');
  assert.match(output, /^closed$/m, `no word of the end of close():\n${output}`);
  assert.equal(status, 0, output);
  return { 'ms from signal to end': Math.round(performance.now() - started) };
}

async function startKilled(context: CheckContext, args: string[]): Promise<RunningProgram> {
  const child = await startScript('attach-and-close.js', args);
  context.after(() => child.end('SIGKILL'));
  await child.says(/^exported /m);
  return child;
}

async function codeOf(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
    return 'no error';
  } catch (error) {
    return error instanceof VduseError ? error.code : String(error);
  }
}

function destroy(name: string): void {
  const control = new VduseControl(linuxVduse);
  try {
    control.destroy(name);
  } finally {
    control.close();
  }
}

/** Nobody can clean up after SIGKILL; whoever comes next is told what is there, and can take it away. */
async function leftBehind(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/left.img', 16 * MiB);
  const idle = await startKilled(context, [image, 'left', 'detached']);
  const attempt1 = await codeOf(exportDisk(makeImage('/tmp/left2.img', MiB), { name: 'left' }));
  assert.equal(attempt1, 'ALREADY_EXISTS', 'while its process lives');
  await idle.end('SIGKILL');
  assert.equal(await codeOf(exportDisk(image, { name: 'left' })), 'DEVICE_LEFT_BEHIND');
  assert.deepEqual(takeStock().devices, ['left'], 'the refusal must not touch the device');
  destroy('left');

  const attached = await startKilled(context, [image, 'left']);
  await sh('echo 2 >/sys/class/vduse/left/msg_timeout');
  await attached.end('SIGKILL');
  assert.equal(await codeOf(exportDisk(image, { name: 'left' })), 'DEVICE_LEFT_BEHIND', 'attached');
  const started = performance.now();
  await sh('vdpa dev del left');
  const delMs = Math.round(performance.now() - started);
  destroy('left');
  const { path } = await withDisk(context, image, { name: 'left' });
  await readBlock(path);
  return { 'vdpa dev del ms, with 2 s of message timeout': delMs };
}

/** Requests take longer than the kernel waits for messages, which are answered all the same. */
async function smallTimeout(context: CheckContext): Promise<Figures> {
  const filename = await withScsiDisk(context, 64);
  const node = { driver: 'host_device', nodeName: 'slow', filename, cache: { direct: true } } as const;
  const disk = await exportDisk(node, { name: 'slow', attach: false, logger: guestLogger });
  context.after(() => disk.close());
  const timeout = '/sys/class/vduse/slow/msg_timeout';
  writeFileSync(timeout, '1');
  assert.equal(readFileSync(timeout, 'utf8').trim(), '1');
  await slowDownScsiDisk();
  const started = performance.now();
  await sh('vdpa dev add name slow mgmtdev vduse');
  const attachMs = Math.round(performance.now() - started);
  assert.ok(attachMs > 1000, 'attaching read nothing of the slow disk');
  const path = vdpaBusDevice('slow')?.blockDevice;
  assert.ok(path !== undefined, 'attached, but without a disk');
  const reading = attempt(`dd if=${path} of=/dev/null bs=4k count=1 iflag=direct`);
  await waitFor('the request is in flight', () => disk.statistics.inFlight > 0 || disk.statistics.reads > 1);
  await disk.close();
  const { status, output } = await reading;
  return { 'attach ms': attachMs, 'read across the detach': status === 0 ? 'whole' : output.slice(0, 60) };
}

await loadModules();
await runChecks([
  { name: '100 rounds of exporting and closing leave nothing', run: hundredRounds, timeoutMs: 180_000 },
  { name: 'rounds with queue threads of their own leave nothing', run: threadRounds, timeoutMs: 120_000 },
  { name: 'taken off the bus and put back on the same open device', run: reattachRounds, timeoutMs: 120_000 },
  { name: 'a process ends by itself after close()', run: processEnds },
  { name: 'a device left behind by SIGKILL is told of, and can be removed', run: leftBehind },
  { name: 'a message timeout shorter than requests take', run: smallTimeout },
]);
