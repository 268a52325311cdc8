/**
 * Disks that live elsewhere: our rbd and nbd block drivers behind vhost-user-blk, beside qemu-storage-daemon with the
 * same drivers and the same export, and beside fio's own rbd and nbd engines, which have neither daemon nor device in
 * between. Each has an image of its own; repetitions take turns. docs/performance.md says how to read what comes out.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { say, withProgress } from '../lab/progress.js';
import {
  readCount,
  readNumber,
  readOptions,
  readPattern,
  runBenchmark,
  UsageError,
} from './support/command.js';
import { BASELINE } from './support/compare-report.js';
import { describeEnvironment, readEnvironment } from './support/environment.js';
import { formatCount, median } from './support/figures.js';
import { type FioClient, findFioClient } from './support/fio-client.js';
import { docsPath, tablesAsMarkdown, tablesAsText, writeJson, writeSection } from './support/publish.js';
import {
  describeDisturbance,
  type RemoteCell,
  remoteJson,
  remoteTables,
  type StoreResult,
} from './support/remote-report.js';
import { measure, type RemoteRun, type RemoteSample, type RemoteWorkload } from './support/remote-sample.js';
import {
  type Contestant,
  openNbdStore,
  openRbdStore,
  ourDaemon,
  qemuDaemon,
  type RemoteStore,
} from './support/remote-stores.js';

const help = `Usage: npm run bench:remote [-- OPTIONS]

Our rbd and nbd block drivers behind vhost-user-blk, beside qemu-storage-daemon and fio's own engines. The stores are a
Ceph cluster of one OSD in memory, and nbdkit's memory plugin, both on this machine. About five minutes.

  --quick                 shorter: within two minutes
  --only PATTERN          the cells whose title matches a regular expression: --only 'nbd.*read, depth 1$'
  --contestants PATTERN   only who matches: --contestants 'vduse|qemu'
  --variant NAME=OPTIONS  ours once more, with options of the export: --variant no-polling=poll-us=0; may be repeated
  --repetitions N         of each cell and contestant (5; quick: 2)
  --seconds S             of each repetition (1; quick: 0.3)
  --image-mib N           size of each image (128)
  --queues N              queues of the daemons' devices, each with a client's thread and the depth (1)
  --json FILE             all samples; "-" is standard output
  --write-docs            puts the tables into docs/performance.md
`;

const options = readOptions({
  quick: { type: 'boolean', default: false },
  only: { type: 'string', default: '' },
  contestants: { type: 'string', default: '' },
  variant: { type: 'string', multiple: true, default: [] as string[] },
  repetitions: { type: 'string' },
  seconds: { type: 'string' },
  'image-mib': { type: 'string' },
  queues: { type: 'string' },
  json: { type: 'string' },
  'write-docs': { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
});

interface Plan {
  readonly repetitions: number;
  readonly seconds: number;
  readonly imageMib: number;
  readonly queues: number;
  readonly client: FioClient;
  readonly signal: AbortSignal;
}

const stores = { nbd: openNbdStore, rbd: openRbdStore } as const;
type StoreName = keyof typeof stores;

const workloads: readonly RemoteWorkload[] = (['randread', 'randwrite'] as const).flatMap((rw) =>
  [1, 16, 64].map((depth) => ({ rw, depth })),
);

function titleOf({ rw, depth }: RemoteWorkload): string {
  return `4k random ${rw === 'randread' ? 'read' : 'write'}, depth ${depth}`;
}

function chosenWorkloads(store: StoreName): RemoteWorkload[] {
  return workloads.filter((workload) => readPattern(options, 'only').test(`${store}: ${titleOf(workload)}`));
}

function chosenDaemons() {
  const variants = options.variant.map((argument) => {
    const at = argument.indexOf('=');
    if (at < 1) throw new UsageError(`--variant takes NAME=OPTIONS; got: ${argument}`);
    return ourDaemon(`vduse ${argument.slice(0, at)}`, argument.slice(at + 1));
  });
  return [ourDaemon('vduse', ''), qemuDaemon, ...variants];
}

function chosenContestants(store: RemoteStore): Contestant[] {
  return store.contestants.filter(({ name }) => readPattern(options, 'contestants').test(name));
}

function runOf(workload: RemoteWorkload, { seconds, signal }: Plan): RemoteRun {
  return { workload, milliseconds: Math.round(seconds * 1000), signal };
}

async function measureCell(store: RemoteStore, workload: RemoteWorkload, plan: Plan): Promise<RemoteCell> {
  const contestants = chosenContestants(store);
  const samples = new Map(contestants.map(({ name }) => [name, [] as RemoteSample[]]));
  const run = runOf(workload, plan);
  for (let n = 0; n < plan.repetitions; n++) {
    // The order turns, so that nobody always comes after the same other.
    for (let k = 0; k < contestants.length; k++) {
      const contestant = contestants[(n + k) % contestants.length];
      samples.get(contestant.name)?.push(await measure(contestant, run));
    }
  }
  return { title: titleOf(workload), workload, samples };
}

const WARM_UP_DEPTH = 16;

/** What a daemon compiles, allocates and connects once in its life is in no cell, neither ours nor another's. */
async function warmUp(store: RemoteStore, plan: Plan): Promise<void> {
  for (const contestant of chosenContestants(store)) {
    for (const rw of ['randread', 'randwrite'] as const) {
      await measure(contestant, runOf({ rw, depth: WARM_UP_DEPTH }, plan));
    }
  }
}

async function measureStore(name: StoreName, plan: Plan): Promise<StoreResult> {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-bench-'));
  try {
    const label = `${name}: starting the store and its users`;
    const context = { ...plan, folder, daemons: chosenDaemons() };
    const store = await withProgress(label, () => stores[name](context), 'bench');
    try {
      await withProgress(`${name}: warming up`, () => warmUp(store, plan), 'bench');
      return { name, title: store.title, cells: await measureCells(store, chosenWorkloads(name), plan) };
    } finally {
      await store.close();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measureCells(
  store: RemoteStore,
  chosen: readonly RemoteWorkload[],
  plan: Plan,
): Promise<RemoteCell[]> {
  const cells: RemoteCell[] = [];
  for (const workload of chosen) {
    const label = `[${cells.length + 1}/${chosen.length}] ${store.name}: ${titleOf(workload)}`;
    const cell = await withProgress(label, () => measureCell(store, workload, plan), 'bench');
    cells.push(cell);
    const figures = [...cell.samples].map(
      ([name, samples]) => `${name} ${formatCount(median(samples.map(({ iops }) => iops)))}`,
    );
    say(`${label}: ${figures.join(', ')}`, 'bench');
  }
  return cells;
}

async function run(signal: AbortSignal): Promise<void> {
  const names = (Object.keys(stores) as StoreName[]).filter((name) => chosenWorkloads(name).length > 0);
  if (names.length === 0) throw new UsageError(`no cell's title matches --only ${options.only}`);
  chosenDaemons();
  const client = await findFioClient();
  const figures = {
    repetitions: readCount(options, 'repetitions', options.quick ? 2 : 5),
    seconds: readNumber(options, 'seconds', options.quick ? 0.3 : 1),
    imageMib: readCount(options, 'image-mib', 128),
    queues: readCount(options, 'queues', 1),
  };
  const environment = readEnvironment([BASELINE, 'rbd', 'nbdkit', 'fio'], client.version);
  const remark =
    `${describeEnvironment(environment)}\n` +
    `Medians of ${figures.repetitions} interleaved repetitions of ${figures.seconds} s; images of ${figures.imageMib} MiB.`;
  const results: StoreResult[] = [];
  for (const name of names) {
    const result = await measureStore(name, { ...figures, client, signal });
    results.push(result);
    publish(result, remark);
  }
  if (options.json !== '-') process.stdout.write(`${remark}\n`);
  if (options.json !== undefined) writeJson(options.json, remoteJson({ environment, ...figures }, results));
}

function publish(result: StoreResult, remark: string): void {
  const tables = remoteTables(result);
  const disturbance = describeDisturbance(result);
  if (options.json !== '-') process.stdout.write(`${tablesAsText(tables)}\n${disturbance}\n\n`);
  if (!options['write-docs']) return;
  writeSection(docsPath('performance.md'), {
    name: `remote-${result.name}`,
    content: `${remark} ${disturbance}\n\n${tablesAsMarkdown(tables)}`,
  });
}

process.exitCode = await runBenchmark(options, help, run);
