/** Images that are slow, full, cut off, locked, aligned in their own way or not to be written. */
import assert from 'node:assert/strict';
import { readFileSync, truncateSync } from 'node:fs';

import { VduseError } from '../../../src/base/errors.js';
import type { FileNodeOptions } from '../../../src/block/node.js';
import { exportDisk } from '../../../src/daemon/export-disk.js';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import { blockAttribute, dropCaches, fio, loadModules, MiB, makeImage, mount, withDisk } from './disks.js';
import { attempt, sh, start, startScript, waitFor } from './shell.js';

async function codeOf(promise: Promise<{ close(): Promise<void> }>): Promise<string> {
  try {
    await (await promise).close();
    return 'no error';
  } catch (error) {
    return error instanceof VduseError ? error.code : String(error);
  }
}

const writeMiB = (path: string, count: number, seek = 0): string =>
  `dd if=/dev/urandom of=${path} bs=1M count=${count} seek=${seek} oflag=direct conv=notrunc status=none`;

/** The image has no room left: the writer is told, readers are served, and with room it goes on. */
async function fullFileSystem(context: CheckContext): Promise<Figures> {
  await sh('mkdir -p /mnt/small && mount -t tmpfs -o size=24m small /mnt/small');
  context.after(() => sh('umount /mnt/small'));
  await sh('head -c 8M /dev/zero >/mnt/small/ballast');
  const image = makeImage('/mnt/small/full.img', 64 * MiB);
  const { disk, path } = await withDisk(context, image);
  await sh(writeMiB(path, 8));
  const sum = await sh(`head -c 8M ${path} | sha256sum`);
  const failed = await attempt(writeMiB(path, 16, 8));
  assert.notEqual(failed.status, 0, 'a write without room below it succeeded');
  assert.match(failed.output, /Input\/output error|No space left/);
  const { errors } = disk.statistics;
  assert.ok(errors > 0);
  await dropCaches();
  assert.equal(await sh(`head -c 8M ${path} | sha256sum`), sum, 'what was there before');
  await sh('rm /mnt/small/ballast');
  await sh(writeMiB(path, 4, 20));
  return { 'requests failed': errors, 'writer saw': failed.output.trim().split(': ').at(-1) ?? '' };
}

/** Somebody cuts the image: what is gone is an error, never zeroes, and the rest is served. */
async function truncatedImage(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/cut.img', 16 * MiB);
  const { disk, path } = await withDisk(context, image);
  await sh(writeMiB(path, 16));
  truncateSync(image, 6 * MiB);
  await dropCaches();
  const gone = await attempt(`dd if=${path} of=/dev/null bs=64k skip=128 count=1 iflag=direct status=none`);
  assert.match(gone.output, /Input\/output error/, 'a read of what was cut off');
  const across = await attempt(`dd if=${path} of=/dev/null bs=1M skip=5 count=2 iflag=direct status=none`);
  assert.match(across.output, /Input\/output error/);
  await sh(`dd if=${path} of=/dev/null bs=1M count=6 iflag=direct status=none`);
  const { errors } = disk.statistics;
  await disk.resize(16 * MiB);
  assert.equal(
    await sh(`dd if=${path} bs=1M skip=8 count=8 iflag=direct status=none | tr -d '\\0' | wc -c`),
    '0',
  );
  return { 'requests failed': errors };
}

/** QEMU's locks and ours exclude each other. */
async function locks(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/locked.img', 16 * MiB);
  const { disk } = await withDisk(context, image, { name: 'first' });
  const second = { name: 'second', attach: false } as const;
  assert.equal(await codeOf(exportDisk(image, second)), 'IMAGE_LOCKED', 'two writers');
  assert.equal(
    await codeOf(exportDisk(image, { ...second, readOnly: true })),
    'IMAGE_LOCKED',
    'a reader beside a writer',
  );
  const qemuWrite = `qemu-io -f raw -c 'write 0 64k' ${image}`;
  const refused = await attempt(qemuWrite);
  assert.match(refused.output, /lock/i, "qemu-io's write");
  const resize = await attempt(`qemu-img resize -f raw ${image} 32M`);
  assert.notEqual(resize.status, 0);
  assert.match(resize.output, /lock/i, "qemu-img's resize");
  const convert = await attempt(`qemu-img convert -n -f raw -O raw /tmp/locked.img ${image}`);
  assert.notEqual(convert.status, 0);
  await disk.close();
  const qemu = await start('qemu-io', ['-f', 'raw', '-c', 'sleep 60000', image]);
  context.after(() => qemu.end('SIGKILL'));
  await waitFor('qemu-io has its locks', () => readFileSync('/proc/locks', 'utf8').includes('OFDLCK'));
  assert.equal(await codeOf(exportDisk(image, second)), 'IMAGE_LOCKED', 'an image that qemu-io has open');
  await qemu.end('SIGKILL');
  await sh(qemuWrite);
  // Readers share.
  const reader = await exportDisk(image, { ...second, readOnly: true });
  context.after(() => reader.close());
  assert.equal(await codeOf(exportDisk(image, { name: 'third', attach: false, readOnly: true })), 'no error');
  await sh(`qemu-img info -f raw ${image}`);
  return {
    'qemu-io was told': /Failed to get "?(\w+)"? lock/.exec(refused.output)?.[0] ?? refused.output.trim(),
  };
}

/** Nothing writes to a read-only disk, whatever the block layer is told. */
async function readOnly(context: CheckContext): Promise<Figures> {
  const image = makeImage('/tmp/ro.img', 16 * MiB);
  await sh(`mkfs.ext4 -q -F ${image}`);
  const sum = await sh(`sha256sum <${image}`);
  const { disk, path, block } = await withDisk(context, image, { readOnly: true });
  assert.equal(await sh(`blockdev --getro ${path}`), '1');
  assert.notEqual((await attempt(writeMiB(path, 1))).status, 0, 'a write to a read-only disk');
  await attempt(`blockdev --setrw ${path}`);
  const forced = await attempt(writeMiB(path, 1));
  const discarded = await attempt(`blkdiscard ${path}`);
  assert.notEqual(forced.status, 0, 'a write after blockdev --setrw');
  assert.notEqual(discarded.status, 0, 'a discard of a read-only disk');
  assert.equal(blockAttribute(block, 'queue/discard_max_bytes'), 0, 'discards are offered');
  assert.equal(disk.statistics.writes, 0);
  const unmount = await mount(context, `-o ro ${path}`, '/mnt/ro');
  await unmount();
  assert.equal(await sh(`sha256sum <${image}`), sum);
  return { getro: 1 };
}

/** A file system on a slow disk with blocks of 4096 bytes, for the time of the check. */
async function slowFileSystem(context: CheckContext, millisecondsPerRequest: number): Promise<string> {
  const delay = millisecondsPerRequest * 1_000_000;
  await sh(`modprobe null_blk nr_devices=1 gb=1 bs=4096 memory_backed=1 irqmode=2 completion_nsec=${delay}`);
  context.after(() => sh('rmmod null_blk'));
  const started = performance.now();
  await sh('dd if=/dev/nullb0 of=/dev/null bs=4k count=10 iflag=direct status=none');
  assert.ok(performance.now() - started >= 10 * millisecondsPerRequest, 'null_blk is not slow');
  await sh('mkfs.ext4 -q -F /dev/nullb0 131072');
  await mount(context, '/dev/nullb0', '/mnt/slow');
  return '/mnt/slow';
}

/** O_DIRECT below wants 4096, the guest's buffers lie anywhere; on the kernel's own thread pool and off it. */
async function directAndThreads(context: CheckContext): Promise<Figures> {
  await sh('echo never >/sys/kernel/mm/transparent_hugepage/enabled');
  const directory = await slowFileSystem(context, 1);
  const figures: Record<string, string | number> = {};
  const kinds: Record<string, Partial<FileNodeOptions>> = {
    direct: { cache: { direct: true }, aio: 'native' },
    'direct, threads': { cache: { direct: true }, aio: 'threads' },
    'buffered, threads': { aio: 'threads' },
  };
  for (const [kind, options] of Object.entries(kinds)) {
    const filename = makeImage(`${directory}/aligned.img`, 32 * MiB);
    const node = { driver: 'file', nodeName: 'aligned', filename, discard: 'unmap', ...options } as const;
    const { disk, path, block } = await withDisk(context, node, { queues: 2 });
    const blockSize = blockAttribute(block, 'queue/logical_block_size');
    assert.equal(blockSize, options.cache?.direct === true ? 4096 : 512, `block size of ${kind}`);
    const odd = await startScript('odd-buffers.js', [path]);
    const { status, output } = await odd.finished;
    assert.equal(status, 0, `${kind}: ${output}`);
    await fio(
      `--filename=${path} --offset=16M --size=8M --rw=randwrite --bsrange=4k-128k --iodepth=16 --verify=crc32c`,
    );
    await fio(
      `--filename=${path} --offset=24M --size=2M --rw=randwrite --bs=4k --ioengine=psync --direct=0 --verify=crc32c`,
    );
    assert.equal(disk.statistics.errors, 0, kind);
    figures[kind] = output.trim();
    await disk.close();
  }
  return figures;
}

/** Reads that the page cache can't answer take their time, and none is given up for it. */
async function slowBufferedImage(context: CheckContext): Promise<Figures> {
  const directory = await slowFileSystem(context, 40);
  const image = makeImage(`${directory}/slow.img`, 32 * MiB);
  await sh(`head -c 16M /dev/urandom | dd of=${image} conv=notrunc status=none`);
  const { disk, path } = await withDisk(context, image, { queues: 2 });
  await dropCaches();
  const { reads } = await fio(
    `--filename=${path} --size=16M --rw=randread --bs=4k --iodepth=64 --number_ios=300`,
  );
  await dropCaches();
  await sh(`cmp -n 4194304 ${path} ${image}`);
  assert.equal(disk.statistics.errors, 0);
  return { 'fio reads': reads };
}

await loadModules('loop');
await runChecks([
  { name: 'a full file system below the image', run: fullFileSystem },
  { name: 'an image cut off while it is used', run: truncatedImage },
  { name: "locks, ours and QEMU's", run: locks },
  { name: 'a read-only disk', run: readOnly },
  { name: 'O_DIRECT, thread pool, and buffers at odd addresses', run: directAndThreads, timeoutMs: 180_000 },
  { name: 'a buffered image on a slow disk', run: slowBufferedImage },
]);
