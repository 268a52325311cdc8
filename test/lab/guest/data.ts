/** Data that goes through a disk is on its image: with several queues, across resizes, and whatever takes the disk away. */
import assert from 'node:assert/strict';
import { readdirSync, realpathSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';

import { type ExportedDisk, exportDisk } from '../../../src/daemon/export-disk.js';
import { vdpaBusDevice } from '../../../src/native/vdpa-bus.js';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import {
  allocatedBytes,
  blockAttribute,
  dropCaches,
  fio,
  fioCommand,
  guestLogger,
  loadModules,
  MiB,
  makeImage,
  makeRecordsFile,
  mount,
  waitForSize,
  withDisk,
  withScsiDisk,
} from './disks.js';
import { checkRecords, lastAcknowledged } from './records.js';
import { attempt, type RunningProgram, sh, start, startScript, waitFor } from './shell.js';

/** A file system is made and written through the disk; the image itself, read without us, has every byte of it. */
async function verifiedFileSystem(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/verify.img', 512 * MiB);
  const { disk, path, block } = await withDisk(context, image, { queues: 4 });
  const queues = readdirSync(`/sys/block/${block}/mq`).length;
  await sh(`mkfs.ext4 -q -F ${path}`);
  const unmount = await mount(context, path, '/mnt/verify');
  const jobs =
    '--directory=/mnt/verify --rw=randwrite --bsrange=4k-64k --size=6M --numjobs=4 --iodepth=16 --end_fsync=1';
  const { writes } = await fio(`${jobs} --verify=crc32c --verify_fatal=1 --allow_file_create=1`);
  const sums = await sh('cd /mnt/verify && sha256sum load.*');
  await unmount();
  await dropCaches();
  const unmountAgain = await mount(context, path, '/mnt/verify');
  assert.equal(await sh('cd /mnt/verify && sha256sum load.*'), sums, 'files differ after mounting again');
  await unmountAgain();
  const { reads, readBytes, writeBytes, errors } = disk.statistics;
  assert.equal(errors, 0);
  await disk.close();
  await sh(`e2fsck -fn ${image}`);
  await mount(context, `-o loop,ro ${image}`, '/mnt/image');
  assert.equal(await sh('cd /mnt/image && sha256sum load.*'), sums, 'files differ in the image itself');
  return {
    queues,
    files: sums.split('\n').length,
    'fio writes': writes,
    'device reads': reads,
    'MiB read': Math.round(readBytes / MiB),
    'MiB written': Math.round(writeBytes / MiB),
  };
}

/**
 * One request at a time for each job: a kick or an interrupt that got lost would keep it waiting until the queue's
 * thread looks by itself, which it does once a second.
 */
async function noLostKicks(context: CheckContext): Promise<Figures> {
  const { path } = await withDisk(context, makeImage('/tmp/kicks.img', 64 * MiB), { queues: 2 });
  const jobs = '--rw=randrw --bs=4k --iodepth=1 --numjobs=2 --time_based --runtime=6';
  const { reads, writes, readIops, writeIops, slowPercent } = await fio(`--filename=${path} ${jobs}`);
  // An emulated processor may stand still for once, when its host is busy.
  const slow = Math.round(((reads + writes) * slowPercent) / 100);
  assert.ok(slow <= 2, `${slow} of ${reads + writes} requests took longer than 750 ms`);
  return { requests: reads + writes, iops: readIops + writeIops, 'longer than 750 ms': slow };
}

/** The disk grows under a mounted file system, which then uses the room. */
async function onlineResize(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/resize.img', 32 * MiB);
  const { disk, path, block } = await withDisk(context, image);
  await sh(`mkfs.ext4 -q -F ${path}`);
  const unmount = await mount(context, path, '/mnt/resize');
  const room = async (): Promise<number> => Number(await sh('stat -f -c %b /mnt/resize'));
  const before = await room();
  await disk.resize(128 * MiB);
  await waitForSize(block, 128 * MiB);
  assert.equal(disk.size, 128 * MiB);
  await sh(`resize2fs ${path}`);
  const after = await room();
  assert.ok(after > 3 * before, `the file system grew from ${before} to ${after} blocks only`);
  await sh('head -c 40M /dev/urandom >/mnt/resize/fill && sync');
  const sum = await sh('sha256sum </mnt/resize/fill');
  await unmount();
  await disk.close();
  await sh(`e2fsck -fn ${image}`);
  await mount(context, `-o loop,ro ${image}`, '/mnt/image');
  assert.equal(await sh('sha256sum </mnt/image/fill'), sum);
  return { 'blocks before': before, 'blocks after': after };
}

/** A disk that shrinks says so, and what lies beyond is an error, not old data. */
async function shrink(context: CheckContext): Promise<Figures> {
  const { disk, path, block } = await withDisk(context, makeImage('/tmp/shrink.img', 64 * MiB));
  await disk.resize(32 * MiB);
  await waitForSize(block, 32 * MiB);
  const beyond = await attempt(`dd if=${path} of=/dev/null bs=1M skip=40 count=1 iflag=direct`);
  assert.match(beyond.output, /0\+0 records in|cannot skip|Invalid argument/);
  await sh(`dd if=${path} of=/dev/null bs=1M iflag=direct`);
  return { 'size in MiB': blockAttribute(block, 'size') / 2048 };
}

/** What is discarded takes no room in the image any more. */
async function discard(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/discard.img', 128 * MiB);
  const { path } = await withDisk(context, image, { queues: 2 });
  await sh(`mkfs.ext4 -q -F ${path}`);
  await mount(context, path, '/mnt/discard');
  await sh('head -c 32M /dev/urandom >/mnt/discard/file && sync');
  const full = allocatedBytes(image);
  assert.ok(full >= 32 * MiB, `the image takes ${full} bytes with 32 MiB in it`);
  await sh('rm /mnt/discard/file && sync && fstrim -v /mnt/discard');
  const trimmed = allocatedBytes(image);
  // What an empty ext4 takes is no fixed number: it goes on to zero its tables in the background.
  assert.ok(trimmed <= full - 28 * MiB, `the image takes ${trimmed} bytes after fstrim, ${full} before`);
  return {
    'MiB full': Math.round(full / MiB),
    'MiB after fstrim': Math.round(trimmed / MiB),
  };
}

/** Zeroes are asked for, not sent: the disk reads back zero, and no zero byte went through the queue. */
async function writeZeroes(context: CheckContext): Promise<Figures> {
  const backing = await withScsiDisk(context, 128);
  // All of it now: ext4 would go on writing its inode tables while sectors are counted.
  await sh(`mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 ${backing}`);
  await mount(context, backing, '/mnt/backing');
  const image = makeImage('/mnt/backing/zeroes.img', 32 * MiB);
  const { disk, path } = await withDisk(context, image);
  await sh(`dd if=/dev/urandom of=${path} bs=1M count=32 oflag=direct`);
  const before = disk.statistics.writeBytes;
  const sectorsWritten = async (): Promise<number> =>
    Number((await sh(`sync; cat /sys/block/${basename(backing)}/stat`)).trim().split(/\s+/)[6]);
  const sectors = await sectorsWritten();
  assert.ok(sectors * 512 >= 32 * MiB, 'the count of written sectors counts nothing');
  await sh(`blkdiscard -z -o 4M -l 16M ${path}`);
  const kept = allocatedBytes(image);
  await dropCaches();
  const zeroes = await sh(
    `dd if=${path} bs=1M skip=4 count=16 iflag=direct status=none | tr -d '\\0' | wc -c`,
  );
  assert.equal(zeroes, '0', 'bytes that are not zero after blkdiscard -z');
  const around = await sh(`dd if=${path} bs=1M count=4 iflag=direct status=none | tr -d '\\0' | wc -c`);
  assert.ok(Number(around) > 4 * MiB * 0.99, 'zeroes before the range that was zeroed');
  assert.equal(disk.statistics.writeBytes, before, 'zeroes went through the queue as data');
  const written = (await sectorsWritten()) - sectors;
  assert.ok(written < 2048 * 8, `${written} sectors were written below the image`);
  assert.ok(kept >= 31 * MiB, `without leave to unmap, the image kept only ${kept} bytes`);
  // fallocate -p may unmap.
  await sh(`fallocate -p -o 4M -l 16M ${path}`);
  const punched = allocatedBytes(image);
  assert.ok(punched <= kept - 15 * MiB, `with leave to unmap, the image still takes ${punched} bytes`);
  assert.equal(
    await sh(`dd if=${path} bs=1M skip=4 count=16 iflag=direct status=none | tr -d '\\0' | wc -c`),
    '0',
  );
  return {
    'sectors written below': written,
    'MiB kept': Math.round(kept / MiB),
    'MiB after punch': Math.round(punched / MiB),
  };
}

/** Starts random reads and writes that only an error ends, and waits until they are under way. */
async function startLoad(disk: ExportedDisk, where: string): Promise<RunningProgram> {
  const { reads } = disk.statistics;
  const load = await start('/bin/sh', [
    '-c',
    `exec ${fioCommand} ${where} --rw=randrw --bs=16k --iodepth=16 --time_based --runtime=100`,
  ]);
  await waitFor(`fio reads (${load.output})`, () => disk.statistics.reads > reads + 100, 40_000);
  return load;
}

/** Waits for the end that the disk's going puts to the load. */
async function endOfLoad(load: RunningProgram): Promise<void> {
  const { status, output } = await load.finished;
  assert.notEqual(status, 0, `fio did not notice that its disk went away: ${output.slice(-2000)}`);
}

/** The disk goes away under a mounted file system that is being written. */
async function detachUnderLoad(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/detach.img', 256 * MiB);
  const { disk, path, block } = await withDisk(context, image, { queues: 4 });
  await sh(`mkfs.ext4 -q -F ${path} && mkdir -p /mnt/detach && mount ${path} /mnt/detach`);
  context.after(() => attempt('umount -l /mnt/detach'));
  makeRecordsFile('/mnt/detach/records', 16 * MiB);
  const load = await startLoad(
    disk,
    '--directory=/mnt/detach --allow_file_create=1 --size=4M --numjobs=3 --fsync=32',
  );
  const writer = await startScript('record-writer.js', ['/mnt/detach/records', '4096']);
  await writer.says(/acknowledged 20$/m, 60_000);
  const started = performance.now();
  await disk.close();
  const detachMs = Math.round(performance.now() - started);
  assert.equal(readdirSync('/sys/block').includes(block), false, `${block} is still there after close()`);
  const last = lastAcknowledged((await writer.finished).output);
  await endOfLoad(load);
  await sh('umount -l /mnt/detach');
  // Mounting replays the journal; nothing may be left to repair then.
  const unmount = await mount(context, `-o loop ${image}`, '/mnt/image');
  checkRecords('/mnt/image/records', last);
  await unmount();
  await sh(`e2fsck -fn ${image}`);
  return { 'records acknowledged': last + 1, 'detach ms': detachMs };
}

/** virtio_blk lets go of the device, which resets it, and takes it again. */
async function rebindUnderLoad(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/rebind.img', 128 * MiB);
  const { disk, path, block } = await withDisk(context, image, { queues: 4 });
  const virtio = basename(realpathSync(`/sys/block/${block}/device`));
  const driver = '/sys/bus/virtio/drivers/virtio_blk';
  let acknowledged = 0;
  const rounds = 4;
  for (let round = 0; round < rounds; round++) {
    const load = await startLoad(disk, `--filename=${path} --offset=64M --size=32M`);
    const writer = await startScript('record-writer.js', [path, '4096']);
    await writer.says(/acknowledged 10$/m, 60_000);
    await sh(`echo ${virtio} >${driver}/unbind`);
    const last = lastAcknowledged((await writer.finished).output);
    await endOfLoad(load);
    checkRecords(image, last);
    acknowledged += last + 1;
    await sh(`echo ${virtio} >${driver}/bind`);
    checkRecords(path, last);
  }
  await fio(`--filename=${path} --offset=64M --size=8M --rw=randwrite --bs=4k --iodepth=32 --verify=crc32c`);
  assert.equal(disk.statistics.errors, 0);
  return { rounds, 'records acknowledged': acknowledged };
}

/** Queues beyond the machine's processors do no harm. */
async function manyQueues(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/queues.img', 64 * MiB);
  const { disk, path, block } = await withDisk(context, image, {
    name: 'queues',
    queues: 16,
    queueSize: 128,
  });
  const cpus = Number(await sh('nproc'));
  const queues = readdirSync(`/sys/block/${block}/mq`).length;
  assert.equal(queues, Math.min(16, cpus), 'the kernel uses one queue a processor');
  const shown = await sh('vdpa dev show queues');
  assert.match(shown, /max_vqs 16 max_vq_size 128/);
  const { writes } = await fio(
    `--filename=${path} --size=4M --numjobs=2 --offset_increment=16M --rw=randwrite --bs=4k --iodepth=64 --verify=crc32c --verify_fatal=1`,
  );
  assert.equal(disk.statistics.errors, 0);
  return { queues, 'of 16 on processors': cpus, 'fio writes': writes };
}

/** More data in flight than the kernel has memory for on the way to the device. */
async function smallBounceRegion(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/bounce.img', 64 * MiB);
  const options = { name: 'bounce', queues: 2, attach: false, logger: guestLogger } as const;
  const disk = await exportDisk(image, options);
  context.after(() => disk.close());
  // The largest request (max_sectors_kb, 1280 KiB) must find room, and addresses are given out in powers of two: with
  // less than twice that Linux tries one for ever.
  writeFileSync('/sys/class/vduse/bounce/bounce_size', String(4 * MiB));
  await sh('vdpa dev add name bounce mgmtdev vduse');
  const path = vdpaBusDevice('bounce')?.blockDevice;
  assert.ok(path !== undefined, 'attached, but without a disk');
  const jobs = '--size=8M --numjobs=2 --offset_increment=16M --rw=randwrite --bsrange=4k-256k --iodepth=64';
  const { writes } = await fio(`--filename=${path} ${jobs} --verify=crc32c --verify_fatal=1`);
  assert.equal(disk.statistics.errors, 0);
  return { 'fio writes': writes };
}

await loadModules('loop');
writeFileSync('/proc/sys/kernel/hung_task_timeout_secs', '60');
await runChecks([
  {
    name: 'a file system on four queues, verified by fio and read back from the image',
    run: verifiedFileSystem,
    timeoutMs: 180_000,
  },
  { name: 'no kick gets lost at depth 1', run: noLostKicks },
  { name: 'online resize, seen by the disk and by resize2fs', run: onlineResize },
  { name: 'a smaller size, and nothing beyond it', run: shrink },
  { name: 'fstrim makes the image smaller', run: discard },
  { name: 'write-zeroes reads back zero and writes no data', run: writeZeroes },
  { name: 'detach under load leaves the image consistent', run: detachUnderLoad, timeoutMs: 120_000 },
  { name: 'virtio_blk unbound and bound again under load', run: rebindUnderLoad, timeoutMs: 180_000 },
  { name: '16 queues of 128', run: manyQueues },
  { name: 'a bounce region of 4 MiB', run: smallBounceRegion },
]);
