/**
 * Disks that live elsewhere: our rbd and nbd block drivers behind vhost-user-blk, beside qemu-storage-daemon with the
 * same drivers and the same export, and beside fio's own rbd and nbd engines, which have neither daemon nor device in
 * between. Each has an image of its own; repetitions take turns.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { say, withProgress } from '../lab/progress.js';
import { describeEnvironment, readEnvironment } from './support/environment.js';
import { formatCount, formatRatio, formatTable, median, pairedRatio } from './support/figures.js';
import { findFioClient } from './support/fio-client.js';
import { measure, type RemoteSample, type RemoteWorkload } from './support/remote-sample.js';
import { type Contestant, openNbdStore, openRbdStore, type RemoteStore } from './support/remote-stores.js';

const help = `Usage: npm run bench:remote [-- OPTIONS]

Our rbd and nbd block drivers behind vhost-user-blk, beside qemu-storage-daemon and fio's own engines. The stores are a
Ceph cluster of one OSD in memory, and nbdkit's memory plugin, both on this machine.

  --only STORE      rbd or nbd
  --repetitions N   of each cell and contestant (3)
  --seconds S       of each repetition (1)
  --image-mib N     size of each image (128)
  --queues N        queues of the daemons' devices, each with a client's thread and the depth (1)
`;

const { values: options } = parseArgs({
  options: {
    only: { type: 'string' },
    repetitions: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '1' },
    'image-mib': { type: 'string', default: '128' },
    queues: { type: 'string', default: '1' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

const BASELINE = 'qemu-storage-daemon';

const workloads: readonly RemoteWorkload[] = (['randread', 'randwrite'] as const).flatMap((rw) =>
  [1, 16, 64].map((depth) => ({ rw, depth })),
);

const stores: Readonly<Record<string, typeof openRbdStore>> = { rbd: openRbdStore, nbd: openNbdStore };

function title({ rw, depth }: RemoteWorkload): string {
  return `4k random ${rw === 'randread' ? 'read' : 'write'}, depth ${depth}`;
}

async function measureStore(store: RemoteStore, signal: AbortSignal): Promise<string[][]> {
  const rows: string[][] = [];
  for (const workload of workloads) {
    const samples = new Map(store.contestants.map(({ name }) => [name, [] as RemoteSample[]]));
    await withProgress(
      `${store.name}: ${title(workload)}`,
      () => takeTurns(store.contestants, { workload, samples, signal }),
      'bench',
    );
    rows.push(...rowsOf(title(workload), samples));
  }
  return rows;
}

async function takeTurns(
  contestants: readonly Contestant[],
  cell: {
    readonly workload: RemoteWorkload;
    readonly samples: ReadonlyMap<string, RemoteSample[]>;
    readonly signal: AbortSignal;
  },
): Promise<void> {
  const milliseconds = Number(options.seconds) * 1000;
  for (let n = 0; n < Number(options.repetitions); n++) {
    // The order turns, so that nobody always comes after the same other.
    for (let k = 0; k < contestants.length; k++) {
      const contestant = contestants[(n + k) % contestants.length];
      const sample = await measure(contestant, { ...cell, milliseconds });
      cell.samples.get(contestant.name)?.push(sample);
    }
  }
}

function rowsOf(cell: string, samples: ReadonlyMap<string, readonly RemoteSample[]>): string[][] {
  const column = (name: string, key: keyof RemoteSample): number[] =>
    (samples.get(name) ?? []).map((sample) => sample[key]);
  return [...samples.keys()].map((name, n) => {
    const middle = (key: keyof RemoteSample): number => median(column(name, key));
    const ratio = pairedRatio(column(name, 'iops'), column(BASELINE, 'iops'));
    return [
      n === 0 ? cell : '',
      name,
      formatCount(middle('iops')),
      middle('p50Us').toFixed(0),
      middle('p99Us').toFixed(0),
      middle('serverCpuUsPerIo').toFixed(1),
      middle('clientCpuUsPerIo').toFixed(1),
      name === BASELINE ? '-' : formatRatio(ratio),
    ];
  });
}

async function run(signal: AbortSignal): Promise<void> {
  const chosen = Object.entries(stores).filter(
    ([name]) => options.only === undefined || options.only === name,
  );
  if (chosen.length === 0) throw new Error(`--only takes rbd or nbd; got: ${options.only}`);
  const client = await findFioClient();
  const header = [
    '',
    'contestant',
    'IOPS',
    'p50 us',
    'p99 us',
    'server CPU us/IO',
    'client CPU us/IO',
    `to ${BASELINE}`,
  ];
  for (const [name, open] of chosen) {
    const folder = mkdtempSync(join(tmpdir(), 'vduse-bench-'));
    try {
      const label = `${name}: starting the store and its users`;
      const store = await withProgress(
        label,
        () =>
          open({ folder, client, imageMib: Number(options['image-mib']), queues: Number(options.queues) }),
        'bench',
      );
      try {
        const rows = await measureStore(store, signal);
        process.stdout.write(`${store.title}\n\n${formatTable([header, ...rows])}\n\n`);
      } finally {
        await store.close();
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  }
  const environment = readEnvironment([BASELINE, 'rbd', 'nbdkit', 'fio'], client.version);
  process.stdout.write(
    `${describeEnvironment(environment)}\nMedians of ${options.repetitions} interleaved repetitions of ${options.seconds} s. fio's own engines have no server: all is in the client's figure.\n`,
  );
}

async function main(): Promise<number> {
  if (options.help) {
    process.stdout.write(help);
    return 0;
  }
  const interrupted = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // Stores, servers and files are put away on the way out.
    process.on(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
  }
  try {
    await run(interrupted.signal);
    return 0;
  } catch (error) {
    say((error as Error).message, 'bench');
    return interrupted.signal.aborted ? 130 : 1;
  }
}

process.exitCode = await main();
