// Hot file: synchronous, no allocation after construction, no throw.
/** What one job of a measurement counts, in memory that its thread and the main thread share. */

/** Times are counted in sixteenths of a microsecond, 32 buckets to a doubling: within 3 %. */
const unitsPerMs = 16_000;
const bucketsPerDoubling = 32;
const bucketBits = 5;
const longestUnits = 2 ** 31 - 1;
const bucketCount = bucketsPerDoubling * (31 - bucketBits + 1);

/** Fields of one direction before its buckets. */
const Field = { COUNT: 0, BYTES: 1, SUM_MS: 2, MAX_MS: 3, BUCKETS: 4 } as const;
const directionWords = Field.BUCKETS + bucketCount;
/** Both directions, then these. */
const errorsWord = 2 * directionWords;
const errnoWord = errorsWord + 1;
const jobWords = errorsWord + 2;

function bucketOf(units: number): number {
  if (units < bucketsPerDoubling) {
    return units;
  }
  const exponent = 31 - Math.clz32(units);
  return (
    bucketsPerDoubling * (exponent - bucketBits + 1) +
    ((units >> (exponent - bucketBits)) & (bucketsPerDoubling - 1))
  );
}

/** The middle of what a bucket holds, microseconds. */
function bucketUs(bucket: number): number {
  if (bucket < bucketsPerDoubling) {
    return (bucket * 1000) / unitsPerMs;
  }
  const shift = Math.floor(bucket / bucketsPerDoubling) - 1;
  const start = (bucketsPerDoubling + (bucket % bucketsPerDoubling)) * 2 ** shift;
  return ((start + 2 ** shift / 2) * 1000) / unitsPerMs;
}

export interface DirectionFigures {
  readonly ios: number;
  readonly bytes: number;
  readonly meanUs: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  readonly maxUs: number;
}

export class LoadCounters {
  static bytesFor(jobs: number): number {
    return jobs * jobWords * Float64Array.BYTES_PER_ELEMENT;
  }

  readonly #words: Float64Array;

  constructor(buffer: SharedArrayBuffer, job: number) {
    this.#words = new Float64Array(buffer, job * jobWords * Float64Array.BYTES_PER_ELEMENT, jobWords);
  }

  /** One request that has ended well. */
  count(isWrite: boolean, bytes: number, ms: number): void {
    const words = this.#words;
    const at = isWrite ? directionWords : 0;
    words[at + Field.COUNT]++;
    words[at + Field.BYTES] += bytes;
    words[at + Field.SUM_MS] += ms;
    if (ms > words[at + Field.MAX_MS]) {
      words[at + Field.MAX_MS] = ms;
    }
    const units = Math.min(longestUnits, Math.max(0, Math.floor(ms * unitsPerMs)));
    words[at + Field.BUCKETS + bucketOf(units)]++;
  }

  /** One that has failed. `errno` is positive. */
  countError(errno: number): void {
    if (this.#words[errorsWord]++ === 0) {
      this.#words[errnoWord] = errno;
    }
  }

  get ios(): number {
    return this.#words[Field.COUNT] + this.#words[directionWords + Field.COUNT];
  }

  get bytes(): number {
    return this.#words[Field.BYTES] + this.#words[directionWords + Field.BYTES];
  }

  get errors(): number {
    return this.#words[errorsWord];
  }

  /** Of the first error; 0 when there was none. */
  get firstErrno(): number {
    return this.#words[errnoWord];
  }

  /** What several jobs have counted of one direction. */
  static figures(jobs: readonly LoadCounters[], isWrite: boolean): DirectionFigures {
    const at = isWrite ? directionWords : 0;
    const sum = (field: number): number => jobs.reduce((total, job) => total + job.#words[at + field], 0);
    const buckets = Array.from({ length: bucketCount }, (_, n) => sum(Field.BUCKETS + n));
    const ios = sum(Field.COUNT);
    const maxUs = Math.max(...jobs.map((job) => job.#words[at + Field.MAX_MS])) * 1000;
    const percentile = (fraction: number): number => {
      let left = Math.ceil(ios * fraction);
      const bucket = buckets.findIndex((count) => {
        left -= count;
        return left <= 0;
      });
      return ios === 0 ? 0 : Math.min(maxUs, bucketUs(bucket));
    };
    return {
      ios,
      bytes: sum(Field.BYTES),
      meanUs: ios === 0 ? 0 : (sum(Field.SUM_MS) / ios) * 1000,
      p50Us: percentile(0.5),
      p99Us: percentile(0.99),
      p999Us: percentile(0.999),
      maxUs,
    };
  }
}
