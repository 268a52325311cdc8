/**
 * The guest's part of bench/vduse.ts: both servers export an image each, and fio takes turns on their disks.
 * Prints a JSON line for each figure. Arguments: repetitions, seconds a run.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type VduseFigure, vduseCells } from './vduse-cells.js';

const [repetitions, seconds] = process.argv.slice(2).map(Number);
const imageMib = 256;
const vduse = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));

function print(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

/** An image in memory, full of data: what is measured is the way to it. */
function makeImage(name: string): string {
  const path = `/dev/shm/${name}.img`;
  execFileSync('dd', ['if=/dev/zero', `of=${path}`, 'bs=1M', `count=${imageMib}`, 'status=none']);
  return path;
}

function disks(): string[] {
  return readdirSync('/sys/block').filter((name) => name.startsWith('vd'));
}

/** Starts a server and finds the disk that appears. */
async function attach(
  start: () => ChildProcess,
  afterStart?: () => void,
): Promise<{ child: ChildProcess; path: string }> {
  const before = disks();
  const child = start();
  for (let attempt = 0; attempt < 400; attempt++) {
    await sleep(100);
    if (attempt === 20) {
      afterStart?.();
    }
    const found = disks().find((name) => !before.includes(name));
    if (found !== undefined) {
      return { child, path: `/dev/${found}` };
    }
  }
  throw new Error('no disk appeared');
}

function startOurs(image: string): ChildProcess {
  const args = [vduse, 'export', image, '--name', 'ours', '--queues', '1', '--queue-size', '256', '--json'];
  return spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

function startPeer(image: string): ChildProcess {
  const node = `driver=file,node-name=disk,filename=${image},aio=io_uring,discard=unmap`;
  const vduseExport =
    'type=vduse-blk,id=peer,node-name=disk,name=peer,writable=on,num-queues=1,queue-size=256';
  return spawn('qemu-storage-daemon', ['--blockdev', node, '--export', vduseExport], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

function fio(disk: string, cell: { rw: string; bs: string; depth: number }): number {
  const output = execFileSync('fio', [
    '--name=bench',
    `--filename=${disk}`,
    '--direct=1',
    '--ioengine=libaio',
    `--rw=${cell.rw}`,
    `--bs=${cell.bs}`,
    `--iodepth=${cell.depth}`,
    `--runtime=${seconds}`,
    '--time_based',
    '--norandommap',
    '--output-format=json',
  ]).toString();
  const [job] = (
    JSON.parse(output.slice(output.indexOf('{'))) as {
      jobs: { read: { iops: number }; write: { iops: number } }[];
    }
  ).jobs;
  return cell.rw.includes('read') ? job.read.iops : job.write.iops;
}

execFileSync('modprobe', ['-a', 'vduse', 'virtio_vdpa', 'virtio_blk']);
const ours = await attach(() => startOurs(makeImage('ours')));
const peer = await attach(
  () => startPeer(makeImage('peer')),
  () => execFileSync('vdpa', ['dev', 'add', 'name', 'peer', 'mgmtdev', 'vduse']),
);
try {
  for (const cell of vduseCells) {
    for (let n = 0; n < repetitions; n++) {
      // They take turns at being first: what the one leaves behind is not always the same other's.
      const order = n % 2 === 0 ? (['ours', 'peer'] as const) : (['peer', 'ours'] as const);
      for (const server of order) {
        const iops = fio(server === 'ours' ? ours.path : peer.path, cell);
        print({ cell: cell.name, server, iops } satisfies VduseFigure);
      }
    }
  }
} finally {
  execFileSync('vdpa', ['dev', 'del', 'peer']);
  peer.child.kill('SIGTERM');
  ours.child.kill('SIGTERM');
}
