/**
 * vhost-user-blk of vduse-storage-daemon beside qemu-storage-daemon and qemu-nbd: same kind of image, same client,
 * interleaved repetitions in one run. docs/performance.md says how to read what comes out.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { say } from '../lab/progress.js';
import { chooseCells } from './support/block-cells.js';
import {
  type BlockServer,
  ours,
  qemuNbd,
  qemuStorageDaemon,
  withEnvironment,
} from './support/block-servers.js';
import { readCount, readNumber, readOptions, runBenchmark, UsageError } from './support/command.js';
import { compare } from './support/compare.js';
import {
  BASELINE,
  type Comparison,
  comparisonJson,
  comparisonPlot,
  comparisonTables,
  type Table,
} from './support/compare-report.js';
import { describeEnvironment, readEnvironment } from './support/environment.js';
import { findFioClient } from './support/fio-client.js';
import {
  docsPath,
  tablesAsMarkdown,
  tablesAsText,
  writeJson,
  writePlot,
  writeSection,
} from './support/publish.js';
import { measurePart, ScalingBench, type ScalingPart, scalingParts } from './support/scaling.js';
import { measureIdle } from './support/scaling-idle.js';
import { idleTable, partPlot, partTable } from './support/scaling-report.js';

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
  --scaling               queues, devices and idle instead: 1 to 16 queues, 1 to 64 devices in one daemon; with
                          --only a part of it: queues, devices, idle
  --ring                  ours alone, with system calls in place of io_uring, beside itself
  --json FILE             all samples; "-" is standard output
  --plot PREFIX           PREFIX.svg and PREFIX.png
  --write-docs            puts tables and plots into docs/performance.md
`;

const options = readOptions({
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
  ring: { type: 'boolean', default: false },
  json: { type: 'string' },
  plot: { type: 'string' },
  'write-docs': { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
});

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
  const own = ours('vduse', options['export-options']);
  if (options.ring) {
    const fallback = { ...own, name: 'system calls' };
    return [
      withEnvironment(fallback, 'VDUSE_RING=system-calls'),
      withEnvironment({ ...own, name: 'io_uring' }, 'VDUSE_RING=io_uring'),
    ];
  }
  const peers = chosenPeers(
    options.peer ?? (options.scaling ? ['qemu-storage-daemon'] : ['qemu-storage-daemon', 'qemu-nbd']),
  );
  if (options['peers-only']) return peers;
  const variants = options.variant.map((argument) => {
    const [name, exportOptions = ''] = split(argument);
    return ours(`vduse ${name}`, exportOptions);
  });
  return [own, ...peers, ...variants];
}

/** A part of the results, which has its place in docs/performance.md. */
interface Section {
  readonly name: string;
  readonly tables: readonly Table[];
  readonly remarks: readonly string[];
  readonly svg?: string;
}

interface Findings {
  readonly sections: readonly Section[];
  readonly json: object;
}

interface Place {
  readonly folder: string;
  readonly signal: AbortSignal;
}

async function runComparison(place: Place): Promise<Findings> {
  const cells = chooseCells({
    quick: options.quick,
    only: options.only ?? (options.ring ? 'depth 32$' : ''),
  });
  if (cells.length === 0) throw new UsageError(`no cell's title matches --only ${options.only}`);
  const servers = chosenServers();
  const client = await findFioClient();
  const plan = {
    ...place,
    cells,
    servers,
    client,
    repetitions: readCount(options, 'repetitions', options.quick ? 2 : 5),
    seconds: readNumber(options, 'seconds', options.quick ? 0.3 : 1),
    imageMib: readCount(options, 'image-mib', options.quick ? 128 : 1024),
  };
  const names = servers.map(({ name }) => name);
  const { repetitions, seconds, imageMib } = plan;
  say(
    `${cells.length} cells, ${repetitions} repetitions of ${seconds} s on each of ${names.join(', ')}`,
    'bench',
  );
  const peers = options.ring ? [] : ['qemu-storage-daemon', 'qemu-nbd'];
  const comparison: Comparison = {
    baseline: options.ring ? 'io_uring' : BASELINE,
    environment: readEnvironment(peers, client.version),
    repetitions,
    seconds,
    imageMib,
    results: await compare(plan),
  };
  const remarks = [
    describeEnvironment(comparison.environment),
    `Medians of ${repetitions} interleaved repetitions of ${seconds} s; images of ${imageMib} MiB.`,
  ];
  const tables = comparisonTables(comparison);
  const name = options.ring ? 'ring' : 'comparison';
  const section = { name, tables, remarks, svg: comparisonPlot(comparison) };
  return { sections: [section], json: comparisonJson(comparison) };
}

/** The chosen parts of the scaling: "idle" beside those under load. */
function chosenParts(): (ScalingPart | 'idle')[] {
  const pattern = new RegExp(options.only ?? '', 'i');
  const names = [...(Object.keys(scalingParts) as ScalingPart[]), 'idle' as const];
  const chosen = names.filter((name) => pattern.test(name));
  if (chosen.length === 0) throw new UsageError(`--scaling has ${names.join(', ')}; got: ${options.only}`);
  return chosen;
}

async function runScaling(place: Place): Promise<Findings> {
  const parts = chosenParts();
  const client = await findFioClient();
  const bench = new ScalingBench({
    ...place,
    servers: chosenServers(),
    client,
    quick: options.quick,
    repetitions: readCount(options, 'repetitions', options.quick ? 1 : 3),
    seconds: readNumber(options, 'seconds', options.quick ? 0.3 : 1),
  });
  const { repetitions, seconds } = bench.plan;
  const environment = readEnvironment(['qemu-storage-daemon'], client.version);
  const described = describeEnvironment(environment);
  const sections: Section[] = [];
  const json: Record<string, unknown> = { environment, repetitions, seconds };
  for (const part of parts) {
    const name = `scaling-${part}`;
    if (part === 'idle') {
      const costs = await measureIdle(bench);
      json[part] = costs;
      sections.push({ name, tables: [idleTable(costs)], remarks: [described] });
    } else {
      const points = await measurePart(bench, part);
      json[part] = points;
      const remarks = [described, `Medians of ${repetitions} interleaved repetitions of ${seconds} s.`];
      sections.push({
        name,
        tables: [partTable(part, points)],
        remarks,
        svg: partPlot(part, points, environment),
      });
    }
  }
  return { sections, json };
}

function publish({ sections, json }: Findings): void {
  if (options.json !== undefined) writeJson(options.json, json);
  for (const { name, tables, remarks, svg } of sections) {
    if (options.json !== '-') process.stdout.write(`${tablesAsText(tables)}\n${remarks.join('\n')}\n\n`);
    if (options.plot !== undefined && svg !== undefined) {
      writePlot(sections.length === 1 ? options.plot : `${options.plot}-${name}`, svg);
    }
    if (!options['write-docs']) continue;
    if (svg !== undefined) writePlot(docsPath(`performance-${name}`), svg);
    const picture = svg === undefined ? [] : [`![${name}](performance-${name}.svg)`];
    const content = [remarks.join('\n'), ...picture, tablesAsMarkdown(tables)].join('\n\n');
    writeSection(docsPath('performance.md'), { name, content });
  }
}

async function run(signal: AbortSignal): Promise<void> {
  const started = performance.now();
  const folder = mkdtempSync(join(options.directory, 'vduse-bench-'));
  try {
    const place = { folder, signal };
    publish(await (options.scaling ? runScaling(place) : runComparison(place)));
    say(`took ${((performance.now() - started) / 1000).toFixed(0)} s`, 'bench');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

process.exitCode = await runBenchmark(options, help, run);
