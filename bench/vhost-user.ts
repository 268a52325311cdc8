/**
 * vhost-user-blk of vduse-storage-daemon beside qemu-storage-daemon and qemu-nbd: same kind of image, same client,
 * interleaved repetitions in one run. docs/performance.md says how to read what comes out.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { say } from '../lab/progress.js';
import { chooseCells } from './support/block-cells.js';
import { type BlockServer, ours, qemuNbd, qemuStorageDaemon } from './support/block-servers.js';
import { compare } from './support/compare.js';
import {
  type Comparison,
  comparisonJson,
  comparisonPlot,
  comparisonTables,
} from './support/compare-report.js';
import { describeEnvironment, readEnvironment } from './support/environment.js';
import { findFioClient } from './support/fio-client.js';
import { tablesAsMarkdown, tablesAsText, writeJson, writePlot, writeSection } from './support/publish.js';
import { measureScaling } from './support/scaling.js';
import { scalingJson, scalingPlot, scalingTables } from './support/scaling-report.js';

const help = `Usage: npm run bench:vhost-user [-- OPTIONS]

vhost-user-blk of vduse-storage-daemon beside qemu-storage-daemon and qemu-nbd, through fio. About a quarter of an hour.
The first run builds fio with the libblkio engine, which takes root and about three minutes more.

  --quick                 fewer cells, shorter: within two minutes
  --only PATTERN          the cells whose title matches a regular expression: --only 'null.*depth 32$'
  --peer NAME[=PROGRAM]   compare with this one alone: qemu-storage-daemon, qemu-nbd; may be repeated
  --peers-only            without ours
  --variant NAME=OPTIONS  ours once more, with options of the export: --variant no-polling=poll-us=0; may be repeated
  --export-options TEXT   the same for ours itself
  --repetitions N         of each cell and server (5; quick: 2)
  --seconds S             of each repetition (1; quick: 0.3)
  --image-mib N           size of each image (1024; quick: 128)
  --directory DIR         where images go (${tmpdir()}); the O_DIRECT cells measure its disk
  --scaling               queues, devices and idle instead: 1 to 16 queues, 1 to 64 devices in one daemon
  --json FILE             all samples; "-" is standard output
  --plot PREFIX           PREFIX.svg and PREFIX.png
  --write-docs            puts tables and plots into docs/performance.md
`;

const optionTable = {
  quick: { type: 'boolean', default: false },
  only: { type: 'string' },
  peer: { type: 'string', multiple: true },
  'peers-only': { type: 'boolean', default: false },
  variant: { type: 'string', multiple: true, default: [] as string[] },
  'export-options': { type: 'string', default: '' },
  repetitions: { type: 'string' },
  seconds: { type: 'string' },
  'image-mib': { type: 'string' },
  directory: { type: 'string', default: tmpdir() },
  scaling: { type: 'boolean', default: false },
  json: { type: 'string' },
  plot: { type: 'string' },
  'write-docs': { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

class UsageError extends Error {}

function readOptions() {
  try {
    return parseArgs({ options: optionTable }).values;
  } catch (error) {
    say(`${(error as Error).message}; --help lists the options`, 'bench');
    process.exit(64);
  }
}

const options = readOptions();

function positive(name: 'repetitions' | 'seconds' | 'image-mib', preset: number): number {
  const value = options[name] === undefined ? preset : Number(options[name]);
  if (!(value > 0)) throw new UsageError(`--${name} takes a number above 0; got: ${options[name]}`);
  return name === 'seconds' ? value : Math.ceil(value);
}

/** "name=the rest" in two. */
function split(argument: string): [string, string | undefined] {
  const at = argument.indexOf('=');
  return at === -1 ? [argument, undefined] : [argument.slice(0, at), argument.slice(at + 1)];
}

function chosenPeers(names: readonly string[]): BlockServer[] {
  return names.map((argument) => {
    const [name, program] = split(argument);
    if (name === 'qemu-storage-daemon') return qemuStorageDaemon(program);
    if (name === 'qemu-nbd') return qemuNbd(program);
    throw new UsageError(`--peer takes qemu-storage-daemon or qemu-nbd; got: ${name}`);
  });
}

function chosenServers(): BlockServer[] {
  const peers = chosenPeers(
    options.peer ?? (options.scaling ? ['qemu-storage-daemon'] : ['qemu-storage-daemon', 'qemu-nbd']),
  );
  if (options['peers-only']) return peers;
  const variants = options.variant.map((argument) => {
    const [name, exportOptions = ''] = split(argument);
    return ours(`vduse ${name}`, exportOptions);
  });
  return [ours('vduse', options['export-options']), ...peers, ...variants];
}

const docs = (name: string): string => fileURLToPath(new URL(`../../docs/${name}`, import.meta.url));

async function runComparison(folder: string, signal: AbortSignal): Promise<void> {
  const cells = chooseCells({ quick: options.quick, only: options.only });
  if (cells.length === 0) throw new UsageError(`no cell's title matches --only ${options.only}`);
  const servers = chosenServers();
  const client = await findFioClient();
  const plan = {
    cells,
    servers,
    repetitions: positive('repetitions', options.quick ? 2 : 5),
    seconds: positive('seconds', options.quick ? 0.3 : 1),
    imageMib: positive('image-mib', options.quick ? 128 : 1024),
    client,
    folder,
    signal,
  };
  say(
    `${cells.length} cells, ${plan.repetitions} repetitions of ${plan.seconds} s on each of ${servers.map(({ name }) => name).join(', ')}`,
    'bench',
  );
  const comparison: Comparison = {
    environment: readEnvironment(['qemu-storage-daemon', 'qemu-nbd'], client.version),
    repetitions: plan.repetitions,
    seconds: plan.seconds,
    imageMib: plan.imageMib,
    results: await compare(plan),
  };
  const tables = comparisonTables(comparison);
  publish({ name: 'comparison', tables, json: comparisonJson(comparison), svg: comparisonPlot(comparison) }, [
    describeEnvironment(comparison.environment),
    `Medians of ${plan.repetitions} interleaved repetitions of ${plan.seconds} s; images of ${plan.imageMib} MiB.`,
  ]);
}

async function runScaling(folder: string, signal: AbortSignal): Promise<void> {
  const servers = chosenServers();
  const client = await findFioClient();
  const result = await measureScaling({
    servers,
    client,
    folder,
    signal,
    quick: options.quick,
    repetitions: positive('repetitions', options.quick ? 1 : 3),
    seconds: positive('seconds', options.quick ? 0.3 : 1),
  });
  const environment = readEnvironment(['qemu-storage-daemon'], client.version);
  publish(
    {
      name: 'scaling',
      tables: scalingTables(result),
      json: scalingJson(result, environment),
      svg: scalingPlot(result, environment),
    },
    [describeEnvironment(environment)],
  );
}

interface Findings {
  readonly name: 'comparison' | 'scaling';
  readonly tables: ReturnType<typeof comparisonTables>;
  readonly json: object;
  readonly svg: string;
}

function publish({ name, tables, json, svg }: Findings, remarks: readonly string[]): void {
  if (options.json !== '-') process.stdout.write(`${tablesAsText(tables)}\n${remarks.join('\n')}\n`);
  if (options.json !== undefined) writeJson(options.json, json);
  if (options.plot !== undefined) writePlot(options.plot, svg);
  if (!options['write-docs']) return;
  writePlot(docs(`performance-${name}`), svg);
  const picture = `![${name}](performance-${name}.svg)`;
  const content = [remarks.join('\n'), picture, tablesAsMarkdown(tables)].join('\n\n');
  writeSection(docs('performance.md'), { name, content });
}

async function main(): Promise<number> {
  if (options.help) {
    process.stdout.write(help);
    return 0;
  }
  const interrupted = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // Servers and files are put away on the way out.
    process.on(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
  }
  const folder = mkdtempSync(join(options.directory, 'vduse-bench-'));
  try {
    await (options.scaling ? runScaling : runComparison)(folder, interrupted.signal);
    return 0;
  } catch (error) {
    const { message } = error as Error;
    const reason = interrupted.signal.aborted ? (interrupted.signal.reason as Error).message : message;
    say(reason, 'bench');
    if (error instanceof UsageError) return 64;
    return interrupted.signal.aborted ? 130 : 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

process.exitCode = await main();
