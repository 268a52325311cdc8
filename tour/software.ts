/** The tour without a kernel: the software driver, the real transport, device and block driver, and a real image. */
import { randomFillSync } from 'node:crypto';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import logUpdate from 'log-update';
import { openSoftwareDisk } from '../src/daemon/open-software-disk.js';
import type { BlkFrontend } from '../src/software-vduse/blk-frontend.js';
import { createImage } from './image.js';
import { describeEvent, isMilestone } from './trace-text.js';

export interface SoftwareTourOptions {
  /** Why it is not the machine's own VDUSE. */
  readonly why: string;
  /** Print every control message and every change of the memory map, not only the milestones. */
  readonly trace: boolean;
}

const mebibyte = 1 << 20;
const imageBytes = 64 * mebibyte;
const measureMs = 1500;
const barWidth = 30;

function title(text: string): void {
  process.stdout.write(`\n== ${text}\n`);
}

function line(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** Runs `step` for each MiB of the image, with a bar on a terminal. Returns MiB per second. */
async function overImage(label: string, step: (offset: number) => Promise<void>): Promise<number> {
  const started = performance.now();
  for (let offset = 0; offset < imageBytes; offset += mebibyte) {
    await step(offset);
    if (process.stdout.isTTY === true) {
      const share = (offset + mebibyte) / imageBytes;
      const full = Math.round(share * barWidth);
      logUpdate(`${label} [${'#'.repeat(full)}${'.'.repeat(barWidth - full)}] ${Math.round(share * 100)} %`);
    }
  }
  logUpdate.clear();
  return imageBytes / mebibyte / ((performance.now() - started) / 1000);
}

async function verify(disk: BlkFrontend): Promise<void> {
  const content = randomFillSync(Buffer.alloc(imageBytes));
  const copiedBefore = disk.domain.bytesCopied;
  const written = await overImage('writing', (offset) =>
    disk.write(offset, content.subarray(offset, offset + mebibyte)),
  );
  await disk.flush();
  const copied = disk.domain.bytesCopied - copiedBefore;
  line(
    `wrote ${imageBytes / mebibyte} MiB of random bytes, flushed: ${Math.round(written)} MiB/s, ` +
      `${(copied / imageBytes).toFixed(2)} bytes copied per byte (bounce region)`,
  );
  const shared = disk.allocateSharedBuffer(mebibyte);
  const copiedAgain = disk.domain.bytesCopied;
  const read = await overImage('reading', async (offset) => {
    await disk.read(offset, shared.bytes);
    if (!content.subarray(offset, offset + mebibyte).equals(shared.bytes)) {
      throw new Error(`what was read at ${offset} is not what was written there`);
    }
  });
  line(
    `read it back and compared, equal: ${Math.round(read)} MiB/s, ` +
      `${((disk.domain.bytesCopied - copiedAgain) / imageBytes).toFixed(2)} bytes copied per byte (shared memory, mapped as it is)`,
  );
  await disk.removeSharedBuffer(shared);
}

async function measure(disk: BlkFrontend, depth: number): Promise<void> {
  const end = performance.now() + measureMs;
  const started = performance.now();
  let count = 0;
  const worker = async (): Promise<void> => {
    const buffer = Buffer.alloc(4096);
    while (performance.now() < end) {
      await disk.read(Math.floor(Math.random() * (imageBytes / 4096)) * 4096, buffer);
      count++;
    }
  };
  await Promise.all(Array.from({ length: depth }, worker));
  const iops = Math.round((count / (performance.now() - started)) * 1000);
  line(`4 KiB random read, depth ${depth}: ${iops.toLocaleString('en')} IOPS`);
}

/** Shows the main job. Throws what goes wrong; nothing is left behind either way. Needs no privileges. */
export async function softwareTour(options: SoftwareTourOptions): Promise<void> {
  line(`Not on this machine's own VDUSE (${options.why}): the software driver plays the kernel.`);
  const folder = mkdtempSync(join(tmpdir(), 'vduse-quickstart-'));
  try {
    title('A disk image');
    const image = join(folder, 'demo.img');
    createImage(image, imageBytes);
    line(`${image}: ${imageBytes / mebibyte} MiB, sparse`);

    title('Becomes a virtio device, and a disk: what the driver and the device say to each other');
    const { disk, close } = await openSoftwareDisk(image, {
      name: 'demo',
      trace: (event) => {
        if (options.trace || isMilestone(event)) {
          line(`  ${describeEvent(event)}`);
        }
      },
    });
    try {
      await show(disk, image);
      title('Detach');
    } finally {
      await close();
    }
    line(next);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function show(disk: BlkFrontend, image: string): Promise<void> {
  line(
    `disk '${await disk.getId()}': ${disk.size / mebibyte} MiB, ${disk.queueCount} queue${disk.queueCount === 1 ? '' : 's'}, blocks of ${disk.blockSize}`,
  );
  title('Write, flush, read back, compare');
  await verify(disk);
  title('Figures (promises in this process; the image is in the page cache)');
  await measure(disk, 1);
  await measure(disk, 32);
  title('Discard gives the blocks back to the file system below');
  const before = statSync(image).blocks / 2048;
  await disk.discard(0, imageBytes);
  line(`${before} MiB allocated before, ${statSync(image).blocks / 2048} MiB after`);
}

const next = `
== What to type next
  npm run quickstart -- --trace        every control message and every change of the memory map
  npm run quickstart -- --lab          the same on a real Linux kernel, in a virtual machine: /dev/vda, mkfs, mount
  node build/src/cli/vduse.js doctor   what this machine has of VDUSE, and what mends what it lacks
  node build/src/cli/vduse.js create disk.img 10G
  node build/src/cli/vduse.js serve disk.img --nbd /tmp/disk.sock
                                       this disk for programs that speak NBD, until Ctrl-C
  node build/src/cli/vduse.js export disk.img
                                       on a machine with VDUSE: /dev/vdX until Ctrl-C`;
