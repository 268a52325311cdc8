/** Latency histograms of exports in QEMU's form, cut out of the finer buckets that the queues count (latency.ts). */
import { VduseError } from '../base/errors.js';
import { bucketStartUs, LatencyOp, latencyBlock, latencyBuckets } from '../device/latency.js';
import type { JsonObject } from '../qmp/json-value.js';
import type { BlockExport } from './block-export.js';

const kinds = { rd: LatencyOp.READ, wr: LatencyOp.WRITE, flush: LatencyOp.FLUSH } as const;
type Kind = keyof typeof kinds;

/** Ascending, in nanoseconds: each is the end of one interval and the start of the next. */
export type Boundaries = Partial<Record<Kind, readonly number[]>>;

interface Histogram {
  readonly boundaries: Boundaries;
  /** What was counted before: histograms count from when they were set. */
  readonly since: Float64Array;
}

/** Intervals of one histogram. */
const boundariesMax = 256;
const nsPerUs = 1000;

export class LatencyHistograms {
  readonly #histograms = new WeakMap<BlockExport, Histogram>();

  /** Counts from now on. No boundaries at all: counts no more. Throws INVALID_ARGUMENT. */
  set(blockExport: BlockExport, boundaries: Boundaries): void {
    const { counters } = blockExport;
    if (counters === undefined) {
      throw new VduseError('NOT_SUPPORTED', `export '${blockExport.id}' counts nothing`);
    }
    for (const [kind, list] of Object.entries(boundaries)) {
      checkBoundaries(blockExport.id, kind as Kind, list);
    }
    const isOn = Object.keys(boundaries).length > 0;
    counters.timing = isOn;
    if (isOn) {
      this.#histograms.set(blockExport, { boundaries, since: counters.totalLatencies() });
    } else {
      this.#histograms.delete(blockExport);
    }
  }

  /** The histograms as members of BlockDeviceStats. */
  describe(blockExport: BlockExport): JsonObject {
    const histogram = this.#histograms.get(blockExport);
    const { counters } = blockExport;
    if (histogram === undefined || counters === undefined) {
      return {};
    }
    const counted = counters.totalLatencies();
    const members: JsonObject = {};
    for (const [kind, boundaries] of Object.entries(histogram.boundaries)) {
      const at = kinds[kind as Kind] * latencyBlock + 1;
      const bins = new Array<number>(boundaries.length + 1).fill(0);
      for (let bucket = 0; bucket < latencyBuckets; bucket++) {
        const count = counted[at + bucket] - histogram.since[at + bucket];
        bins[intervalOf(bucketStartUs(bucket) * nsPerUs, boundaries)] += count;
      }
      members[`${kind}_latency_histogram`] = { boundaries: [...boundaries], bins };
    }
    return members;
  }
}

function intervalOf(timeNs: number, boundaries: readonly number[]): number {
  const found = boundaries.findIndex((boundary) => timeNs < boundary);
  return found === -1 ? boundaries.length : found;
}

const kindNames: Record<Kind, string> = { rd: 'read', wr: 'write', flush: 'flush' };

function checkBoundaries(id: string, kind: Kind, boundaries: readonly number[]): void {
  const isAscending = boundaries.every((value, n) => value > (n === 0 ? 0 : boundaries[n - 1]));
  if (!isAscending || boundaries.length === 0 || boundaries.length > boundariesMax) {
    throw new VduseError('INVALID_ARGUMENT', `Device '${id}' set ${kindNames[kind]} boundaries fail`, {
      hint: `1 to ${boundariesMax} times in nanoseconds, each larger than the one before`,
    });
  }
}
