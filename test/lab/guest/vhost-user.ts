/**
 * A disk that the machine's own QEMU attaches by vhost-user: the back-end runs outside, and so does whoever resizes
 * the disk and pulls it out. What they are to do is a line of stdout (test/lab/vhost-user.test.ts).
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { type CheckContext, type Figures, runChecks } from './checks.js';
import { blockAttribute, dropCaches, fio, MiB, mount, waitForSize } from './disks.js';
import { askHost } from './host-deeds.js';
import { attempt, sh, waitFor } from './shell.js';

/** The disk of an export, by the serial number that it answers with; undefined while it is not there. */
function diskOf(serial: string): string | undefined {
  return readdirSync('/sys/block').find((block) => {
    try {
      return readFileSync(`/sys/block/${block}/serial`, 'utf8').trim() === serial;
    } catch {
      // Not all disks have one, and one may go while it is looked at.
      return false;
    }
  });
}

const isThere = (): boolean => diskOf('first') !== undefined;

async function verifiedFileSystem(context: CheckContext): Promise<Figures> {
  const block = diskOf('first')!;
  const path = `/dev/${block}`;
  const queues = readdirSync(`/sys/block/${block}/mq`).length;
  assert.equal(queues, 4);
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
  return { queues, 'fio writes': writes };
}

async function onlineResize(): Promise<Figures> {
  const block = diskOf('first')!;
  const path = `/dev/${block}`;
  const before = blockAttribute(block, 'size') * 512;
  askHost('resize');
  await waitForSize(block, before + 64 * MiB);
  await sh(`e2fsck -fp ${path} && resize2fs ${path} && e2fsck -fn ${path}`);
  return { 'MiB before': before / MiB };
}

/** Pulled out while requests are under way, and put back: what had been flushed is there. */
async function unplugAndPlug(): Promise<Figures> {
  const path = (): string => `/dev/${diskOf('first')}`;
  const sum = (): Promise<string> => sh(`dd if=${path()} bs=1M iflag=direct status=none | sha256sum`);
  const before = await sum();
  let turns = 0;
  for (; turns < 3; turns++) {
    const reading = attempt(`dd if=${path()} of=/dev/null bs=64k iflag=direct status=none`);
    askHost('unplug');
    await waitFor('the disk has gone', () => !isThere(), 30_000);
    await reading;
    askHost('plug');
    await waitFor('the disk is back', isThere, 30_000);
    assert.equal(await sum(), before, 'the data is another');
  }
  return { turns };
}

async function readOnlyDisk(): Promise<undefined> {
  const block = diskOf('second')!;
  assert.equal(blockAttribute(block, 'ro'), 1);
  await sh(`cmp -n 1048576 /dev/${diskOf('first')} /dev/${block}`);
  assert.notEqual((await attempt(`dd if=/dev/zero of=/dev/${block} bs=4k count=1 oflag=direct`)).status, 0);
}

await sh('modprobe -a virtio_blk ext4');
await waitFor('the disks are there', () => isThere() && diskOf('second') !== undefined);
await runChecks([
  { name: 'on four queues: mkfs, fio verify, the same after mounting again', run: verifiedFileSystem },
  { name: 'the same image, read-only, as another disk', run: readOnlyDisk },
  { name: 'an online resize is seen', run: onlineResize },
  { name: 'hot-unplug with requests in flight, and hot-plug', timeoutMs: 180_000, run: unplugAndPlug },
]);
