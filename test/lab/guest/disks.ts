/** Images, disks and file systems of the machine, and what fio makes of them. */
import { closeSync, fsyncSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { basename } from 'node:path';

import { createLogger } from '../../../src/base/log.js';
import { type DiskOptions, type ExportedDisk, exportDisk } from '../../../src/daemon/export-disk.js';
import type { CheckContext } from './checks.js';
import { attempt, sh, waitFor } from './shell.js';

export const MiB = 1 << 20;

/** The modules of a disk on this machine; vhost_vdpa comes later than virtio_vdpa, which so binds first. */
export async function loadModules(...more: string[]): Promise<void> {
  await sh(`modprobe -a vduse virtio_vdpa virtio_blk ${more.join(' ')}`);
}

/** An image without blocks. In /tmp, which is memory. */
export function makeImage(path: string, size: number): string {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, size);
  closeSync(fd);
  return path;
}

/**
 * A file for record-writer.ts, its blocks written before. In new blocks ext4 can acknowledge an fdatasync that
 * comes while its disk goes away (6.12): it fails to turn the extent into a written one, and tells nobody.
 */
export function makeRecordsFile(path: string, size: number): void {
  const fd = openSync(path, 'w');
  const zeroes = Buffer.alloc(MiB);
  for (let at = 0; at < size; at += MiB) {
    writeSync(fd, zeroes, 0, Math.min(MiB, size - at), at);
  }
  fsyncSync(fd);
  closeSync(fd);
}

/** Bytes that a file takes, which is what `du` counts. */
export function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

/** Warnings go to stderr: they are what explains a failure. */
export const guestLogger = createLogger({ level: process.env['VDUSE_LAB_LOG'] ?? 'warn' });

export interface AttachedDisk {
  readonly disk: ExportedDisk;
  /** Such as /dev/vda. */
  readonly path: string;
  /** Such as vda. */
  readonly block: string;
}

/** A disk of this process for the time of the check. */
export async function withDisk(
  context: CheckContext,
  source: Parameters<typeof exportDisk>[0],
  options: DiskOptions = {},
): Promise<AttachedDisk> {
  const disk = await exportDisk(source, { logger: guestLogger, ...options });
  context.after(() => disk.close());
  const { path } = disk;
  if (path === undefined || !statSync(path).isBlockDevice()) {
    throw new Error(`'${disk.name}' is attached, but has no disk: its path is ${path}`);
  }
  return { disk, path, block: basename(path) };
}

const scsiDebug = '/sys/bus/pseudo/drivers/scsi_debug';

/**
 * A disk of the kernel's SCSI test driver, for the time of the check: memory, and one request at a time. Returns
 * its path.
 */
export async function withScsiDisk(context: CheckContext, sizeMiB: number, parameters = ''): Promise<string> {
  await sh(
    `modprobe -a sd_mod && modprobe scsi_debug dev_size_mb=${sizeMiB} delay=0 max_queue=1 ${parameters}`,
  );
  // A request that was given up ends when it likes, and the module has a user until then.
  const unload = async (): Promise<boolean> => (await attempt('rmmod scsi_debug')).status === 0;
  context.after(() => waitFor('scsi_debug can be unloaded', unload, 60_000));
  const list = `ls -d ${scsiDebug}/adapter0/host*/target*/*/block/sd*`;
  await waitFor('the SCSI disk is there', async () => (await attempt(list)).status === 0);
  return `/dev/${basename(await sh(list))}`;
}

/** From now on every request of the SCSI disk takes a second. */
export async function slowDownScsiDisk(): Promise<void> {
  await sh(`echo 999999999 >${scsiDebug}/ndelay`);
}

/** No delay any more, once the requests that wait are over. */
export async function speedUpScsiDisk(): Promise<void> {
  const speedUp = async (): Promise<boolean> => (await attempt(`echo 0 >${scsiDebug}/delay`)).status === 0;
  await waitFor('the SCSI disk is idle', speedUp, 60_000);
}

/** A number of /sys/block/DISK/…. */
export function blockAttribute(block: string, attribute: string): number {
  return Number(readFileSync(`/sys/block/${block}/${attribute}`, 'utf8'));
}

/** Mounts the disk for the time of the check. Returns how to unmount it earlier. */
export async function mount(
  context: CheckContext,
  device: string,
  directory: string,
): Promise<() => Promise<void>> {
  await sh(`mkdir -p ${directory} && mount ${device} ${directory}`);
  let mounted = true;
  const unmount = async (): Promise<void> => {
    if (mounted) {
      mounted = false;
      await sh(`umount ${directory}`);
    }
  };
  context.after(unmount);
  return unmount;
}

/** Forgets what the kernel has cached of files and disks, so that the next read is a real one. */
export async function dropCaches(): Promise<void> {
  await sh('sync; echo 3 >/proc/sys/vm/drop_caches');
}

export interface FioResult {
  readonly reads: number;
  readonly writes: number;
  readonly readIops: number;
  readonly writeIops: number;
  /** Percent of the requests that took longer than 750 ms. */
  readonly slowPercent: number;
}

interface FioJob {
  readonly error: number;
  /** Percent by upper bound. */
  readonly latency_ms: Readonly<Record<string, number>>;
  readonly read: { total_ios: number; iops: number };
  readonly write: { total_ios: number; iops: number };
}

/** The totals of fio's JSON, which may follow lines of warnings. Throws where a job failed. */
export function parseFio(output: string): FioResult {
  const { jobs } = JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] };
  if (jobs.some((job) => job.error !== 0)) {
    throw new Error(`fio reports an error:\n${output}`);
  }
  const sum = (pick: (job: FioJob) => number): number => jobs.reduce((total, job) => total + pick(job), 0);
  return {
    reads: sum((job) => job.read.total_ios),
    writes: sum((job) => job.write.total_ios),
    readIops: Math.round(sum((job) => job.read.iops)),
    writeIops: Math.round(sum((job) => job.write.iops)),
    slowPercent: Math.max(
      ...jobs.map(({ latency_ms: ms }) => (ms['1000'] ?? 0) + (ms['2000'] ?? 0) + (ms['>=2000'] ?? 0)),
    ),
  };
}

/**
 * The start of a fio command line. A disk that has gone must not come back as a file of /dev. The name is none of
 * the checkout's directories: fio would take that for the file to work on.
 */
export const fioCommand =
  'fio --name=load --output-format=json --allow_file_create=0 --direct=1 --ioengine=io_uring';

/** Runs fio with O_DIRECT through io_uring unless the options say otherwise. Fails when a verification does. */
export async function fio(options: string): Promise<FioResult> {
  const line = `${fioCommand} --group_reporting ${options}`;
  const { status, output } = await attempt(line);
  if (status !== 0) {
    throw new Error(`exit status ${status} of: ${line}\n${output.slice(-4000)}`);
  }
  return parseFio(output);
}

/** Waits until the disk has the size. */
export async function waitForSize(block: string, bytes: number): Promise<void> {
  await waitFor(
    `/sys/block/${block}/size says ${bytes} bytes`,
    () => blockAttribute(block, 'size') * 512 === bytes,
  );
}
