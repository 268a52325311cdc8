/**
 * The software disk through NBD beside qemu-nbd and nbdkit: the same file, the same client (fio's nbd engine),
 * interleaved repetitions in one run. Also bounce against direct mapping, with the bytes copied, counted.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { say } from '../lab/progress.js';
import { readOptions, runBenchmark } from './support/command.js';
import { formatCount, formatRatio, formatTable, median, pairedRatio } from './support/figures.js';
import { makeImage } from './support/images.js';
import { type Running, runProgram, startServer } from './support/processes.js';

const options = readOptions({
  json: { type: 'boolean' },
  quick: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
});

const help = `Usage: npm run bench:software [-- --quick] [--json]

The software disk (direct and bounce) beside qemu-nbd and nbdkit, through NBD on Unix sockets, with fio.
Ratios are taken repetition by repetition: median (lowest to highest).
`;

const imageMib = 512;
const repetitions = options.quick === true ? 2 : 5;
const runSeconds = options.quick === true ? 1 : 2;

interface Server {
  readonly name: string;
  readonly command: (socket: string, image: string) => string[];
}

const ownServer = fileURLToPath(new URL('./software-server.js', import.meta.url));
const servers: readonly Server[] = [
  { name: 'direct', command: (socket, image) => [process.execPath, ownServer, socket, image, 'direct'] },
  { name: 'bounce', command: (socket, image) => [process.execPath, ownServer, socket, image, 'bounce'] },
  {
    name: 'qemu-nbd',
    command: (socket, image) =>
      `qemu-nbd -k ${socket} -f raw --cache=writeback --aio=io_uring -e 4 -t ${image}`.split(' '),
  },
  { name: 'nbdkit', command: (socket, image) => ['nbdkit', '-f', '-U', socket, 'file', image] },
];

interface Cell {
  readonly name: string;
  readonly rw: string;
  readonly bs: string;
  readonly depth: number;
}

const cells: readonly Cell[] = [
  { name: '4k random read, depth 1', rw: 'randread', bs: '4k', depth: 1 },
  { name: '4k random read, depth 32', rw: 'randread', bs: '4k', depth: 32 },
  { name: '4k random write, depth 1', rw: 'randwrite', bs: '4k', depth: 1 },
  { name: '4k random write, depth 32', rw: 'randwrite', bs: '4k', depth: 32 },
  { name: '128k sequential read, depth 8', rw: 'read', bs: '128k', depth: 8 },
  { name: '128k sequential write, depth 8', rw: 'write', bs: '128k', depth: 8 },
];

interface FioDirection {
  readonly iops: number;
}

/** Runs fio once. Returns IOPS. */
async function runFio(cell: Cell, socket: string, signal: AbortSignal): Promise<number> {
  const output = await runProgram(
    [
      'fio',
      '--name=bench',
      '--ioengine=nbd',
      `--uri=nbd+unix:///?socket=${socket}`,
      `--rw=${cell.rw}`,
      `--bs=${cell.bs}`,
      `--iodepth=${cell.depth}`,
      `--size=${imageMib}M`,
      `--runtime=${runSeconds}`,
      '--time_based',
      '--norandommap',
      '--randrepeat=0',
      '--output-format=json',
    ],
    { signal },
  );
  const parsed = JSON.parse(output.slice(output.indexOf('{'))) as {
    jobs: { read: FioDirection; write: FioDirection }[];
  };
  const [job] = parsed.jobs;
  return cell.rw.includes('read') ? job.read.iops : job.write.iops;
}

/** IOPS by cell and server, a figure for each repetition. Servers take turns within a repetition. */
async function measure(
  socketOf: (server: string) => string,
  signal: AbortSignal,
): Promise<Map<string, Map<string, number[]>>> {
  const results = new Map<string, Map<string, number[]>>();
  for (const cell of cells) {
    const figures = new Map(servers.map(({ name }) => [name, [] as number[]]));
    results.set(cell.name, figures);
    for (let n = 0; n < repetitions; n++) {
      // The order turns, so that no server is always the one after the same other.
      for (let k = 0; k < servers.length; k++) {
        const { name } = servers[(n + k) % servers.length];
        figures.get(name)?.push(await runFio(cell, socketOf(name), signal));
      }
    }
    const line = servers.map(({ name }) => `${name} ${formatCount(median(figures.get(name) ?? []))}`);
    say(`${cell.name}: ${line.join(', ')}`, 'bench');
  }
  return results;
}

function report(results: Map<string, Map<string, number[]>>, counters: Map<string, string>): void {
  const summary = cells.map((cell) => {
    const figures = results.get(cell.name) as Map<string, number[]>;
    const of = (name: string): number[] => figures.get(name) ?? [];
    return {
      cell: cell.name,
      iops: Object.fromEntries(servers.map(({ name }) => [name, Math.round(median(of(name)))])),
      directToQemuNbd: pairedRatio(of('direct'), of('qemu-nbd')),
      directToNbdkit: pairedRatio(of('direct'), of('nbdkit')),
      directToBounce: pairedRatio(of('direct'), of('bounce')),
    };
  });
  if (options.json === true) {
    const copied = Object.fromEntries([...counters].map(([name, text]) => [name, JSON.parse(text)]));
    process.stdout.write(`${JSON.stringify({ cells: summary, counters: copied })}\n`);
    return;
  }
  const rows = [
    [
      'IOPS, medians',
      ...servers.map(({ name }) => name),
      'direct/qemu-nbd',
      'direct/nbdkit',
      'direct/bounce',
    ],
    ...summary.map((row) => [
      row.cell,
      ...servers.map(({ name }) => formatCount(row.iops[name])),
      formatRatio(row.directToQemuNbd),
      formatRatio(row.directToNbdkit),
      formatRatio(row.directToBounce),
    ]),
  ];
  process.stdout.write(`${formatTable(rows)}\n`);
  for (const [name, text] of counters) {
    const { bytesCopied, payload, requests } = JSON.parse(text) as Record<string, number>;
    process.stdout.write(
      `${name}: ${requests} requests, ${payload} bytes of payload, ${bytesCopied} bytes copied by the IOMMU (${(bytesCopied / payload).toFixed(3)} a byte)\n`,
    );
  }
}

async function run(signal: AbortSignal): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-bench-'));
  const running = new Map<string, Running>();
  const socketOf = (server: string): string => join(folder, `${server}.sock`);
  try {
    say(
      `an image of ${imageMib} MiB, ${repetitions} repetitions of ${runSeconds} s a cell and server`,
      'bench',
    );
    for (const { name, command } of servers) {
      // An image each: image locks are real, and nobody is to warm another one's cache.
      const image = join(folder, `${name}.img`);
      await makeImage(image, imageMib);
      const socket = socketOf(name);
      running.set(name, await startServer(command(socket, image), [socket]));
    }
    const results = await measure(socketOf, signal);
    const counters = new Map<string, string>();
    for (const [name, { stop, output }] of running) {
      await stop();
      if (name === 'direct' || name === 'bounce') {
        // The last that it says, behind what it may have logged.
        counters.set(name, output().trim().split('\n').at(-1) ?? '');
      }
    }
    report(results, counters);
  } finally {
    for (const { stop } of running.values()) {
      await stop();
    }
    rmSync(folder, { recursive: true, force: true });
  }
}

process.exitCode = await runBenchmark(options, help, run);
