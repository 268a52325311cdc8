/** The binding for virtual machines: /dev/vhost-vdpa-N, driven by a small monitor of our own. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, statSync } from 'node:fs';

import { type ExportedDisk, exportDisk } from '../../../src/daemon/export-disk.js';
import { vdpaBusDevice } from '../../../src/native/vdpa-bus.js';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import {
  fio,
  guestLogger,
  loadModules,
  MiB,
  makeImage,
  slowDownScsiDisk,
  speedUpScsiDisk,
  withScsiDisk,
} from './disks.js';
import { takeStock } from './holdings.js';
import { sh, startScript, waitFor } from './shell.js';

async function withVhost(
  context: CheckContext,
  image: Parameters<typeof exportDisk>[0],
  name: string,
): Promise<{ disk: ExportedDisk; path: string }> {
  const disk = await exportDisk(image, { name, attach: 'vhost', queueSize: 128, logger: guestLogger });
  context.after(() => disk.close());
  const { path = '' } = disk;
  assert.match(path, /^\/dev\/vhost-vdpa-\d+$/);
  assert.ok(statSync(path).isCharacterDevice());
  return { disk, path };
}

interface Transferred {
  deviceId: number;
  features: string;
  capacity: number;
  queueSizeMax: number;
  mebibytes: number;
  longestRemapMs: number;
  interrupts: number;
  queueBase: number;
}

function lastJson(output: string): unknown {
  const line = output.trim().split('\n').at(-1) ?? '';
  assert.match(line, /^\{/, `no result in the front-end's output:\n${output}`);
  return JSON.parse(line);
}

/** virtio_vdpa was there first; the export binds vhost_vdpa in its place. Data goes straight from shared memory. */
async function transfers(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/vhost.img', 32 * MiB);
  const { disk, path } = await withVhost(context, image, 'vhost');
  assert.equal(vdpaBusDevice('vhost')?.driver, 'vhost_vdpa');
  const before = takeStock();
  const frontEnd = await startScript('vhost-front-end.js', [path, 'transfer']);
  context.after(() => frontEnd.end('SIGKILL'));
  const { status, output } = await frontEnd.finished;
  assert.equal(status, 0, output);
  const found = lastJson(output) as Transferred;
  assert.equal(found.deviceId, 2);
  assert.equal(found.capacity, (32 * MiB) / 512);
  assert.equal(found.queueSizeMax, 128);
  assert.equal(found.interrupts, 2, 'the device did not interrupt the front-end');
  assert.equal(disk.statistics.errors, 0);
  // The image has what the front-end wrote last; its first bytes tell.
  const fd = openSync(image, 'r');
  const bytes = Buffer.alloc(32);
  readSync(fd, bytes, 0, 32, 0);
  closeSync(fd);
  assert.notDeepEqual(bytes, Buffer.alloc(32), 'nothing is on the image');
  await waitFor(
    'maps of the front-end are gone',
    () => !takeStock().specialMaps.some((name) => name.includes('guest')),
  );
  const after = takeStock();
  assert.deepEqual(after.descriptors, before.descriptors);
  assert.deepEqual(after.specialMaps, before.specialMaps);
  return { ...found };
}

/** A front-end that dies leaves the device usable for the next one. */
async function killedFrontEnd(context: CheckContext): Promise<Figures> {
  const { disk, path } = await withVhost(context, makeImage('/tmp/killed.img', 32 * MiB), 'killed');
  const first = await startScript('vhost-front-end.js', [path, 'transfer']);
  context.after(() => first.end('SIGKILL'));
  await waitFor('the front-end is at work', () => disk.statistics.writes > 20, 60_000);
  await first.end('SIGKILL');
  const second = await startScript('vhost-front-end.js', [path, 'transfer']);
  context.after(() => second.end('SIGKILL'));
  const { status, output } = await second.finished;
  assert.equal(status, 0, output);
  return { 'writes in all': disk.statistics.writes };
}

/** Bound to the other driver and back, on one device that stays open. */
async function rebound(context: CheckContext): Promise<Figures> {
  const { disk, path } = await withVhost(context, makeImage('/tmp/bound.img', 32 * MiB), 'bound');
  const drivers = '/sys/bus/vdpa/drivers';
  await sh(`echo virtio_vdpa >/sys/bus/vdpa/devices/bound/driver_override`);
  await sh(`echo bound >${drivers}/vhost_vdpa/unbind && echo bound >${drivers}/virtio_vdpa/bind`);
  const block = vdpaBusDevice('bound')?.blockDevice;
  assert.ok(block !== undefined, 'virtio_vdpa has it, but there is no disk');
  await fio(`--filename=${block} --size=4M --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c`);
  await sh(`echo vhost_vdpa >/sys/bus/vdpa/devices/bound/driver_override`);
  await sh(`echo bound >${drivers}/virtio_vdpa/unbind && echo bound >${drivers}/vhost_vdpa/bind`);
  const frontEnd = await startScript('vhost-front-end.js', [path, 'transfer']);
  const { status, output } = await frontEnd.finished;
  assert.equal(status, 0, output);
  assert.equal(disk.statistics.errors, 0);
  return {};
}

/**
 * A reset comes while the disk below is slower than a message may be. It is answered in time, and what the disk
 * still delivers must not change memory that the front-end was told is its own again.
 */
async function stuckReset(context: CheckContext): Promise<Figures> {
  const filename = await withScsiDisk(context, 64);
  // Without the page cache, which would read ahead: every request is one of the disk's.
  const node = { driver: 'host_device', nodeName: 'stuck', filename, cache: { direct: true } } as const;
  const { path } = await withVhost(context, node, 'stuck');
  await sh('echo 4 >/sys/class/vduse/stuck/msg_timeout');
  await slowDownScsiDisk();
  const frontEnd = await startScript('vhost-front-end.js', [path, 'stuck']);
  context.after(() => frontEnd.end('SIGKILL'));
  const { status, output } = await frontEnd.finished;
  assert.equal(status, 0, output);
  const found = lastJson(output) as { answer: string; resetMs: number; writtenAfterReset: number };
  assert.ok(found.resetMs < 4000, `the reset took ${found.resetMs} ms of the 4000 that it may`);
  assert.ok(found.writtenAfterReset > 0, 'no request was stuck: this check showed nothing');
  assert.match(found.answer, /EIO/, 'the reset was answered with success, and memory was written later');
  // With the requests over, the next front-end finds a device that works.
  await speedUpScsiDisk();
  const next = await startScript('vhost-front-end.js', [path, 'transfer']);
  context.after(() => next.end('SIGKILL'));
  const finished = await next.finished;
  assert.equal(finished.status, 0, `after the reset that failed: ${finished.output}`);
  return { ...found };
}

// The order that gives virtio_vdpa every device first.
await loadModules('vhost_vdpa');
await runChecks([
  { name: 'transfers, remaps and resets over /dev/vhost-vdpa', run: transfers, timeoutMs: 120_000 },
  { name: 'a front-end that is killed', run: killedFrontEnd, timeoutMs: 120_000 },
  { name: 'bound to virtio_vdpa and back', run: rebound, timeoutMs: 120_000 },
  { name: 'a reset while requests are stuck', run: stuckReset },
]);
