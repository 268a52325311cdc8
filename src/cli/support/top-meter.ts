/** From what query-blockstats tells at two moments to what an export does: rates, latencies and how they went. */
import { isJsonObject, type JsonObject, type JsonValue } from '../../qmp/json-value.js';

export interface ExportActivity {
  readonly id: string;
  readonly node: string;
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writeBytesPerSecond: number;
  /** Of reads, writes and flushes; undefined while nothing was counted. */
  readonly p50Us: number | undefined;
  readonly p99Us: number | undefined;
  readonly inFlight: number;
  readonly errors: number;
}

interface Counters {
  readonly stats: JsonObject;
  readonly node: string;
}

/** Boundaries of the histograms that are set: from 1 us on, four to a doubling, up to a minute. Nanoseconds. */
export const topBoundaries: readonly number[] = Array.from({ length: 104 }, (_, n) =>
  Math.round(1000 * 2 ** (n / 4)),
).filter((value, n, all) => n === 0 || value > all[n - 1]);

const histogramNames = ['rd_latency_histogram', 'wr_latency_histogram', 'flush_latency_histogram'] as const;

export class TopMeter {
  #last = new Map<string, Counters>();
  #lastMs = 0;

  /** The exports of `answer`, by id, that have no histogram yet. */
  static untimed(answer: JsonValue): string[] {
    return [...countersOf(answer)]
      .filter(([, { stats }]) => histogramNames.every((name) => stats[name] === undefined))
      .map(([id]) => id);
  }

  /** What happened since the sample before; an export that was not there then is left out. */
  sample(answer: JsonValue, nowMs: number): ExportActivity[] {
    const counters = countersOf(answer);
    const seconds = Math.max(1, nowMs - this.#lastMs) / 1000;
    const activities: ExportActivity[] = [];
    for (const [id, { stats, node }] of counters) {
      const before = this.#last.get(id)?.stats;
      if (before !== undefined) {
        activities.push({ id, node, ...activityOf(before, stats, seconds) });
      }
    }
    this.#last = counters;
    this.#lastMs = nowMs;
    return activities.sort((a, b) => (a.id < b.id ? -1 : 1));
  }
}

function countersOf(answer: JsonValue): Map<string, Counters> {
  const entries = Array.isArray(answer) ? answer.filter(isJsonObject) : [];
  return new Map(
    entries.flatMap((entry) => {
      const { stats } = entry;
      return isJsonObject(stats)
        ? [[String(entry['qdev']), { stats, node: String(entry['node-name']) }] as const]
        : [];
    }),
  );
}

function activityOf(
  before: JsonObject,
  now: JsonObject,
  seconds: number,
): Omit<ExportActivity, 'id' | 'node'> {
  // An export of the same id that is new counts from 0 again.
  const perSecond = (name: string): number =>
    Math.max(0, numberOf(now, name) - numberOf(before, name)) / seconds;
  const latencies = mergedHistogram(before, now);
  return {
    readsPerSecond: perSecond('rd_operations'),
    writesPerSecond: perSecond('wr_operations'),
    readBytesPerSecond: perSecond('rd_bytes'),
    writeBytesPerSecond: perSecond('wr_bytes'),
    p50Us: quantileUs(latencies, 0.5),
    p99Us: quantileUs(latencies, 0.99),
    inFlight: numberOf(now, 'x-in-flight'),
    errors: numberOf(now, 'x-errors'),
  };
}

function numberOf(stats: JsonObject, name: string): number {
  const value = stats[name];
  return typeof value === 'number' ? value : 0;
}

/** Counts by the end of their interval, in nanoseconds. */
type Histogram = ReadonlyMap<number, number>;

function mergedHistogram(before: JsonObject, now: JsonObject): Histogram {
  const merged = new Map<number, number>();
  for (const name of histogramNames) {
    const then = intervalsOf(before[name]);
    for (const [end, count] of intervalsOf(now[name])) {
      merged.set(end, (merged.get(end) ?? 0) + Math.max(0, count - (then.get(end) ?? 0)));
    }
  }
  return merged;
}

function intervalsOf(histogram: JsonValue | undefined): Map<number, number> {
  if (!isJsonObject(histogram)) {
    return new Map();
  }
  const boundaries = numbersOf(histogram['boundaries']);
  const ends = [...boundaries, (boundaries.at(-1) ?? 0) * 2];
  return new Map(numbersOf(histogram['bins']).map((count, n) => [ends[n], count]));
}

function numbersOf(value: JsonValue | undefined): number[] {
  return Array.isArray(value) ? value.map(Number) : [];
}

/** The end of the interval in which the quantile lies: not less than the truth, nor much more. */
function quantileUs(histogram: Histogram, quantile: number): number | undefined {
  const sorted = [...histogram].sort(([a], [b]) => a - b);
  const total = sorted.reduce((sum, [, count]) => sum + count, 0);
  let left = total * quantile;
  for (const [end, count] of sorted) {
    left -= count;
    if (total > 0 && left <= 0) {
      return end / 1000;
    }
  }
  return undefined;
}

const sparks = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/** A curve of small bars; the highest value is the full height. */
export function sparkline(values: readonly number[]): string {
  const max = Math.max(...values, 0);
  return values.map((value) => sparks[max === 0 ? 0 : Math.min(7, Math.floor((value / max) * 8))]).join('');
}
