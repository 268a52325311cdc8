/** The tour itself: the commands that a user would type, one after the other, with what they print. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import {
  closeSync,
  createReadStream,
  fsyncSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { checkoutRoot } from '../lab/checkout.js';

export interface TourOptions {
  /** The machine is emulated: its figures say nothing of speed, and the tour says so. */
  readonly emulated: boolean;
}

const imageMib = 256;
const payloadMib = 32;
const measureSeconds = 3;

const vduse = [process.execPath, join(checkoutRoot(), 'build/src/cli/vduse.js')];

function title(text: string): void {
  process.stdout.write(`\n== ${text}\n`);
}

/** Runs a command to its end and shows it; what it prints is returned. */
async function run(shown: string, command: readonly string[]): Promise<string> {
  process.stdout.write(`$ ${shown}\n`);
  const child = spawn(command[0], command.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  const status = await exitOf(child);
  if (status !== 0) {
    throw new Error(`'${shown}' ended with status ${status}:\n${output}`);
  }
  return output;
}

function exitOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
}

/** Starts `vduse export` in the background. Resolves with the disk's path when it is there. */
async function startExport(image: string): Promise<{ child: ChildProcess; path: string }> {
  process.stdout.write('$ vduse export demo.img &\n');
  const args = ['export', image, '--json', '--name', 'demo', '--log-level', 'warn'];
  const child = spawn(vduse[0], [...vduse.slice(1), ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  for await (const line of createInterface({ input: child.stdout })) {
    const event = JSON.parse(line) as { event: string; path?: string; message?: string };
    if (event.event === 'ready' && event.path !== undefined) {
      process.stdout.write(`${event.path}\n`);
      child.stdout.resume();
      return { child, path: event.path };
    }
    if (event.event === 'error') {
      throw new Error(event.message);
    }
  }
  throw new Error("'vduse export' ended before the disk was there");
}

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) {
    hash.update(chunk as Buffer);
  }
  return hash.digest('hex');
}

function writePayload(path: string): void {
  const block = Buffer.alloc(1 << 20);
  const fd = openSync(path, 'w');
  for (let n = 0; n < payloadMib; n++) {
    randomFillSync(block);
    writeSync(fd, block);
  }
  fsyncSync(fd);
  closeSync(fd);
}

interface FioJob {
  readonly read: { readonly iops: number; readonly bw: number };
  readonly write: { readonly iops: number; readonly bw: number };
}

async function measure(disk: string, pattern: 'randread' | 'randwrite', depth: number): Promise<void> {
  const args = [
    '--name=tour',
    `--filename=${disk}`,
    `--rw=${pattern}`,
    '--bs=4k',
    `--iodepth=${depth}`,
    '--ioengine=libaio',
    '--direct=1',
    `--runtime=${measureSeconds}`,
    '--time_based',
    '--output-format=json',
  ];
  const child = spawn('fio', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  if ((await exitOf(child)) !== 0) {
    throw new Error('fio failed');
  }
  const job = (JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] }).jobs[0];
  const { iops } = pattern === 'randread' ? job.read : job.write;
  const name = pattern === 'randread' ? 'random read' : 'random write';
  process.stdout.write(`4 KiB ${name}, depth ${depth}: ${Math.round(iops).toLocaleString('en')} IOPS\n`);
}

async function useDisk(folder: string, disk: string): Promise<void> {
  const mountPoint = join(folder, 'mnt');
  title('A file system on it: write, forget the cache, read back');
  await run(`mkfs.ext4 ${disk}`, ['mkfs.ext4', '-q', disk]);
  await run(`mount ${disk} mnt`, ['mount', '--mkdir', disk, mountPoint]);
  try {
    const file = join(mountPoint, 'payload');
    writePayload(file);
    const written = await digest(file);
    process.stdout.write(`wrote ${payloadMib} MiB of random bytes, sha256 ${written.slice(0, 16)}…\n`);
    await run('umount mnt && mount again', ['umount', mountPoint]);
    writeFileSync('/proc/sys/vm/drop_caches', '3');
    await run('mount', ['mount', disk, mountPoint]);
    const read = await digest(file);
    process.stdout.write(`read it back from ${disk}:      sha256 ${read.slice(0, 16)}…\n`);
    if (read !== written) {
      throw new Error('what was read is not what was written');
    }
    process.stdout.write('equal\n');
  } finally {
    await run('umount mnt', ['umount', mountPoint]);
  }
}

/** Shows the main job. Throws what goes wrong; nothing is left behind either way. Needs root and VDUSE. */
export async function tour(options: TourOptions): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-quickstart-'));
  const image = join(folder, 'demo.img');
  let exporter: ChildProcess | undefined;
  try {
    title('A disk image becomes a disk');
    await run(`vduse create demo.img ${imageMib}M`, [...vduse, 'create', image, `${imageMib}M`]);
    const started = await startExport(image);
    exporter = started.child;
    process.stdout.write(await run('vduse list', [...vduse, 'list']));
    await useDisk(folder, started.path);
    title('Figures');
    for (const [pattern, depth] of [
      ['randread', 1],
      ['randread', 32],
      ['randwrite', 32],
    ] as const) {
      await measure(started.path, pattern, depth);
    }
    if (options.emulated) {
      process.stdout.write('(in an emulated machine: these show that it works, not how fast it is)\n');
    }
    title('Ctrl-C: the disk goes, the image stays');
    exporter.kill('SIGINT');
    await exitOf(exporter);
    exporter = undefined;
    process.stdout.write(await run('du -h demo.img', ['sh', '-c', `cd ${folder} && du -h demo.img`]));
    process.stdout.write(next);
  } finally {
    if (exporter !== undefined) {
      exporter.kill('SIGTERM');
      await exitOf(exporter);
    }
    rmSync(folder, { recursive: true, force: true });
  }
}

const next = `
== What to type next
On a machine with Linux 5.15 or newer and its VDUSE modules, as root:
  npx vduse doctor                 what this machine has, and what mends what it lacks
  npx vduse create disk.img 10G
  npx vduse export disk.img        until Ctrl-C
Here, in the virtual machine:
  npm run lab                      a shell there
  npm test                         every test
`;
