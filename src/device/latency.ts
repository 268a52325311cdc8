// Hot file: synchronous, no allocation per request, no throw.
/**
 * How long requests take, counted in memory that all threads share, and only while somebody asks for it. Buckets are
 * four to a doubling from 1 us on. The clock is read once a turn at most: requests that start or end together have one
 * time.
 */

/** What is counted apart: BlockOp's first three, and discards with write-zeroes. */
export const LatencyOp = { READ: 0, WRITE: 1, FLUSH: 2, UNMAP: 3 } as const;
export const latencyOps = 4;

/** Buckets up to 2^29 us, nine minutes; the last one takes what is longer. */
export const latencyBuckets = 112;
const bucketsPerDoubling = 4;
const longestUs = 2 ** 29 - 1;
/** A counter block: the sum of all times in microseconds, and then the buckets. */
export const latencyBlock = 1 + latencyBuckets;

function bucketOf(us: number): number {
  if (us < bucketsPerDoubling) {
    return us;
  }
  const exponent = 31 - Math.clz32(us);
  return bucketsPerDoubling * (exponent - 1) + ((us >> (exponent - 2)) & (bucketsPerDoubling - 1));
}

/** The shortest time of a bucket, microseconds. */
export function bucketStartUs(bucket: number): number {
  if (bucket < bucketsPerDoubling) {
    return bucket;
  }
  const exponent = Math.floor(bucket / bucketsPerDoubling) + 1;
  return (bucketsPerDoubling + (bucket % bucketsPerDoubling)) * 2 ** (exponent - 2);
}

export interface LatencyMemory {
  /** Not 0 while times are to be counted. */
  readonly timing: Float64Array;
  /** latencyOps blocks, one after the other. */
  readonly blocks: Float64Array;
}

/** Counts one request that took so long. */
export function countLatency(blocks: Float64Array, op: number, microseconds: number): void {
  const us = Math.min(longestUs, Math.max(0, Math.floor(microseconds)));
  const at = Math.min(op, LatencyOp.UNMAP) * latencyBlock;
  blocks[at] += us;
  blocks[at + 1 + bucketOf(us)]++;
}

/** One queue's requests, by slot. */
export class LatencyRecorder {
  readonly #timing: Float64Array;
  readonly #blocks: Float64Array;
  readonly #turns: { readonly turns: number };
  /** When the slot's request started; 0: it is not timed. */
  readonly #startUs: Float64Array;
  #turn = -1;
  #nowUs = 0;

  constructor(memory: LatencyMemory, slots: number, turns: { readonly turns: number }) {
    this.#timing = memory.timing;
    this.#blocks = memory.blocks;
    this.#turns = turns;
    this.#startUs = new Float64Array(slots);
  }

  start(slot: number): void {
    // A request of several ranges is started with each of them.
    if (this.#timing[0] !== 0 && this.#startUs[slot] === 0) {
      this.#startUs[slot] = this.#now();
    }
  }

  end(slot: number, op: number): void {
    const startUs = this.#startUs[slot];
    if (startUs !== 0) {
      this.#startUs[slot] = 0;
      countLatency(this.#blocks, op, this.#now() - startUs);
    }
  }

  #now(): number {
    if (this.#turn !== this.#turns.turns) {
      this.#turn = this.#turns.turns;
      this.#nowUs = performance.now() * 1000;
    }
    return this.#nowUs;
  }
}
