/** What a comparison has found: as tables, as JSON, as a plot. */
import { backings, backingTitles } from './block-cells.js';
import type { CellResult, Sample } from './compare.js';
import type { Environment } from './environment.js';
import { formatCount, formatRatio, median, pairedRatio, type Ratio } from './figures.js';
import { barChart } from './svg.js';

/** What figures are put in relation to, where nothing else is said. */
export const BASELINE = 'qemu-storage-daemon';

export interface Comparison {
  /** The server that others are put in relation to. */
  readonly baseline: string;
  readonly environment: Environment;
  readonly repetitions: number;
  readonly seconds: number;
  readonly imageMib: number;
  readonly results: readonly CellResult[];
}

type Column = keyof Sample;

function column(result: CellResult, server: string, name: Column): number[] {
  return (result.samples.get(server) ?? []).map((sample) => sample[name]);
}

/** How `server` does beside `other`; undefined if one of them was not measured. */
export function ratioOf(
  result: CellResult,
  { server, other, name }: { server: string; other: string; name: Column },
): Ratio | undefined {
  const [mine, theirs] = [column(result, server, name), column(result, other, name)];
  return server === other || mine.length === 0 || theirs.length === 0 ? undefined : pairedRatio(mine, theirs);
}

function orDash(ratio: Ratio | undefined): string {
  return ratio === undefined ? '-' : formatRatio(ratio);
}

export function serverNames(results: readonly CellResult[]): string[] {
  return [...new Set(results.flatMap(({ samples }) => [...samples.keys()]))];
}

/** Three digits are what a median of a few repetitions is worth. */
export function formatMicroseconds(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

function rowsOf(results: readonly CellResult[], baseline: string): string[][] {
  return results.flatMap((result) =>
    [...result.samples.keys()].map((server, n) => {
      const failure = result.failures.get(server);
      if (failure !== undefined) {
        return [n === 0 ? result.cell.workload.name : '', server, ...Array(6).fill('-'), failure];
      }
      const middle = (name: Column): number => median(column(result, server, name));
      return [
        n === 0 ? result.cell.workload.name : '',
        server,
        formatCount(middle('iops')),
        (middle('bytesPerSecond') / 1e6).toFixed(0),
        formatMicroseconds(middle('p50Us')),
        formatMicroseconds(middle('p99Us')),
        formatMicroseconds(middle('p999Us')),
        formatMicroseconds(middle('cpuUsPerIo')),
        orDash(ratioOf(result, { server, other: baseline, name: 'iops' })),
      ];
    }),
  );
}

export interface Table {
  readonly title: string;
  readonly rows: readonly (readonly string[])[];
}

/** A table for each thing behind the disk, then one of ratios alone. */
export function comparisonTables({ results, baseline }: Comparison): Table[] {
  const header = ['IOPS', 'MB/s', 'p50 us', 'p99 us', 'p99.9 us', 'CPU us/IO', `to ${baseline}`];
  const tables = backings.flatMap((backing) => {
    const own = results.filter(({ cell }) => cell.backing === backing);
    const rows = [['', 'server', ...header], ...rowsOf(own, baseline)];
    return own.length === 0 ? [] : [{ title: backingTitles[backing], rows }];
  });
  return [...tables, ratioTable(results, baseline)];
}

function ratioTable(results: readonly CellResult[], baseline: string): Table {
  const [first, ...others] = serverNames(results);
  const rows = results.map((result) => [
    `${backingTitles[result.cell.backing]}: ${result.cell.workload.name}`,
    ...others.map((other) => orDash(ratioOf(result, { server: first, other, name: 'iops' }))),
    orDash(ratioOf(result, { server: first, other: baseline, name: 'cpuUsPerIo' })),
  ]);
  const header = ['', ...others.map((other) => `IOPS to ${other}`), `CPU per I/O to ${baseline}`];
  return { title: `${first}: ratios, median (lowest to highest)`, rows: [header, ...rows] };
}

export function comparisonJson(comparison: Comparison): object {
  const { results, ...rest } = comparison;
  const { baseline } = rest;
  return {
    ...rest,
    cells: results.map((result) => ({
      backing: result.cell.backing,
      workload: result.cell.workload,
      servers: Object.fromEntries(
        [...result.samples].map(([server, samples]) => [
          server,
          {
            samples,
            failure: result.failures.get(server),
            iopsRatio: ratioOf(result, { server, other: baseline, name: 'iops' }),
            cpuPerIoRatio: ratioOf(result, { server, other: baseline, name: 'cpuUsPerIo' }),
          },
        ]),
      ),
    })),
  };
}

/** The first server's IOPS as multiples of each other's. */
export function comparisonPlot({ environment, repetitions, results }: Comparison): string {
  const [first, ...others] = serverNames(results);
  const groups = backings.flatMap((backing) => {
    const rows = results
      .filter(({ cell }) => cell.backing === backing)
      .map((result) => ({
        label: result.cell.workload.name,
        bars: others.map((other) => {
          const ratio = ratioOf(result, { server: first, other, name: 'iops' });
          return ratio === undefined ? undefined : { value: ratio.median, low: ratio.low, high: ratio.high };
        }),
      }));
    return rows.length === 0 ? [] : [{ title: backingTitles[backing], rows }];
  });
  return barChart({
    title: `vhost-user-blk: IOPS of ${first}, as a multiple`,
    subtitle: `medians of ${repetitions} interleaved repetitions, lines from the lowest to the highest; ${environment.processors} processors, Linux ${environment.kernel}, ${environment.date}`,
    series: others.map((other) => `of ${other}`),
    groups,
  });
}
