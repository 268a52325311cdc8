/** What the remote benchmark has found: as tables and as JSON. */
import { BASELINE, formatMicroseconds, type Table } from './compare-report.js';
import type { Environment } from './environment.js';
import { formatCount, formatRatio, median, pairedRatio, type Ratio } from './figures.js';
import { foreignShareMax, type RemoteSample, type RemoteWorkload } from './remote-sample.js';

export interface RemoteCell {
  readonly title: string;
  readonly workload: RemoteWorkload;
  /** By contestant: a sample for each repetition, those of one repetition taken side by side. */
  readonly samples: ReadonlyMap<string, readonly RemoteSample[]>;
}

export interface StoreResult {
  readonly name: string;
  readonly title: string;
  readonly cells: readonly RemoteCell[];
}

type Column = keyof RemoteSample;

interface Pair {
  readonly mine: string;
  readonly other: string;
  readonly column: Column;
}

function samplesOf({ samples }: RemoteCell, contestant: string): readonly RemoteSample[] {
  return samples.get(contestant) ?? [];
}

function isQuiet(sample: RemoteSample | undefined): boolean {
  return sample !== undefined && sample.foreignShare <= foreignShareMax;
}

/** Of the repetitions in which neither was disturbed, where there are any. */
function ratioOf(cell: RemoteCell, { mine, other, column }: Pair): Ratio | undefined {
  const [ours, theirs] = [samplesOf(cell, mine), samplesOf(cell, other)];
  if (mine === other || ours.length === 0 || theirs.length === 0) return undefined;
  const all = [...ours.keys()];
  const quiet = all.filter((n) => isQuiet(ours[n]) && isQuiet(theirs[n]));
  const chosen = quiet.length > 0 ? quiet : all;
  const figures = (samples: readonly RemoteSample[]): number[] => chosen.map((n) => samples[n][column]);
  return pairedRatio(figures(ours), figures(theirs));
}

function formatted(ratio: Ratio | undefined): string {
  return ratio === undefined ? '-' : formatRatio(ratio);
}

function rowsOf(cell: RemoteCell): string[][] {
  return [...cell.samples.keys()].map((contestant, n) => {
    const samples = samplesOf(cell, contestant);
    const middle = (column: Column): number => median(samples.map((sample) => sample[column]));
    const server = middle('serverCpuUsPerIo');
    return [
      n === 0 ? cell.title : '',
      contestant,
      formatCount(middle('iops')),
      formatMicroseconds(middle('p50Us')),
      formatMicroseconds(middle('p99Us')),
      server === 0 ? '-' : formatMicroseconds(server),
      formatMicroseconds(middle('clientCpuUsPerIo')),
      formatMicroseconds(middle('storeCpuUsPerIo')),
      formatted(ratioOf(cell, { mine: contestant, other: BASELINE, column: 'iops' })),
    ];
  });
}

/** The figures of a store's cells, then the first contestant's ratios alone. */
export function remoteTables({ title, cells }: StoreResult): Table[] {
  const cpu = ['server CPU us/IO', 'client CPU us/IO', 'store CPU us/IO'];
  const header = ['', 'contestant', 'IOPS', 'p50 us', 'p99 us', ...cpu, `to ${BASELINE}`];
  const [mine, ...others] = [...(cells[0]?.samples.keys() ?? [])];
  const ratios = cells.map((cell) => [
    cell.title,
    ...others.map((other) => formatted(ratioOf(cell, { mine, other, column: 'iops' }))),
    formatted(ratioOf(cell, { mine, other: BASELINE, column: 'serverCpuUsPerIo' })),
  ]);
  const ratioHeader = ['', ...others.map((name) => `IOPS to ${name}`), `server CPU per I/O to ${BASELINE}`];
  return [
    { title, rows: [header, ...cells.flatMap(rowsOf)] },
    { title: `${mine}: ratios, median (lowest to highest)`, rows: [ratioHeader, ...ratios] },
  ];
}

/** How quiet the machine was. */
export function describeDisturbance({ cells }: StoreResult): string {
  const samples = cells.flatMap((cell) => [...cell.samples.values()].flat());
  const disturbed = samples.filter(({ foreignShare }) => foreignShare > foreignShareMax).length;
  const percent = foreignShareMax * 100;
  return (
    `In ${disturbed} of ${samples.length} samples other programs used more than ${percent} % of the processors; ` +
    'ratios leave those repetitions out.'
  );
}

export interface RemoteRun {
  readonly environment: Environment;
  readonly repetitions: number;
  readonly seconds: number;
  readonly imageMib: number;
  readonly queues: number;
}

export function remoteJson(run: RemoteRun, results: readonly StoreResult[]): object {
  return {
    ...run,
    baseline: BASELINE,
    stores: results.map(({ name, title, cells }) => ({
      name,
      title,
      cells: cells.map((cell) => ({
        title: cell.title,
        workload: cell.workload,
        contestants: Object.fromEntries(
          [...cell.samples].map(([contestant, samples]) => [
            contestant,
            { samples, iopsRatio: ratioOf(cell, { mine: contestant, other: BASELINE, column: 'iops' }) },
          ]),
        ),
      })),
    })),
  };
}
