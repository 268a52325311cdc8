// Hot file: `reserve` is synchronous, allocates nothing and does not throw.
/**
 * QEMU's throttle groups: leaky buckets that all members share, in memory that all threads share. A request takes
 * its place in the buckets when it comes and learns how long it has to wait, so the members of a group are served
 * in the order in which their requests came, whichever thread they are on.
 */

export interface ThrottleLimit {
  /** Units a second; 0: no limit. */
  readonly average: number;
  /** Units a second in a burst; 0: the average, with a tenth of a second's worth at once. */
  readonly burst: number;
  /** How long a burst may last. Seconds. */
  readonly burstSeconds: number;
}

/** In the order of the buckets. */
export const throttleBuckets = [
  'bps-total',
  'bps-read',
  'bps-write',
  'iops-total',
  'iops-read',
  'iops-write',
] as const;
export type ThrottleBucket = (typeof throttleBuckets)[number];

export interface ThrottleLimits {
  readonly buckets: Readonly<Record<ThrottleBucket, ThrottleLimit>>;
  /** A longer request counts as several. Bytes; 0: it does not. */
  readonly iopsSize: number;
}

const Field = { AVERAGE: 0, BURST: 1, BURST_SECONDS: 2, LEVEL: 3, BURST_LEVEL: 4, COUNT: 5 } as const;
const bucketCount = throttleBuckets.length;
const iopsStart = 3;
const writeBucket = 2;
const sizeNumber = bucketCount * Field.COUNT;
const leakedNumber = sizeNumber + 1;
const numbers = leakedNumber + 1;
const lockWord = 0;
const versionWord = 1;
const numbersAt = 8;
/** Without a burst rate so much of a second's units may come at once, and of the burst rate's during a burst. */
const sliceOfSecond = 0.1;
/** A holder of the lock does some arithmetic. One that takes so many milliseconds has died. */
const lockMsMax = 100;

export class ThrottleGroup {
  readonly buffer: SharedArrayBuffer;
  readonly #words: Int32Array;
  readonly #numbers: Float64Array;
  /** From this thread's clock to the one that all threads share. */
  readonly #clockMs: number;

  constructor(buffer = new SharedArrayBuffer(numbersAt + numbers * 8)) {
    this.buffer = buffer;
    this.#words = new Int32Array(buffer, 0, numbersAt / 4);
    this.#numbers = new Float64Array(buffer, numbersAt, numbers);
    const [seconds, nanoseconds] = process.hrtime();
    this.#clockMs = seconds * 1000 + nanoseconds / 1e6 - performance.now();
  }

  /** Another number: the limits are others, and waits that were told before do not count. */
  get version(): number {
    return Atomics.load(this.#words, versionWord);
  }

  /** Sets limits and empties the buckets. */
  configure(limits: ThrottleLimits): void {
    this.#lock();
    throttleBuckets.forEach((name, bucket) => {
      const { average, burst, burstSeconds } = limits.buckets[name];
      this.#numbers.set([average, burst, burstSeconds, 0, 0], bucket * Field.COUNT);
    });
    this.#numbers[sizeNumber] = limits.iopsSize;
    this.#numbers[leakedNumber] = this.#now();
    Atomics.add(this.#words, versionWord, 1);
    this.#unlock();
  }

  /** Takes a request's place. Returns how long it has to wait, in milliseconds. */
  reserve(isWrite: boolean, length: number): number {
    this.#lock();
    this.#leak();
    const size = this.#numbers[sizeNumber];
    const operations = size > 0 && length > size ? length / size : 1;
    let waitMs = 0;
    for (let bucket = 0; bucket < bucketCount; bucket++) {
      // Total, read, write.
      const kind = bucket % iopsStart;
      if (kind !== 0 && (kind === writeBucket) !== isWrite) {
        continue;
      }
      waitMs = Math.max(waitMs, this.#waitMs(bucket));
      const at = bucket * Field.COUNT;
      const units = bucket < iopsStart ? length : operations;
      this.#numbers[at + Field.LEVEL] += units;
      this.#numbers[at + Field.BURST_LEVEL] += units;
    }
    this.#unlock();
    return waitMs;
  }

  #waitMs(bucket: number): number {
    const at = bucket * Field.COUNT;
    const values = this.#numbers;
    const average = values[at + Field.AVERAGE];
    const burst = values[at + Field.BURST];
    if (average === 0) {
      return 0;
    }
    const size = burst === 0 ? average * sliceOfSecond : burst * values[at + Field.BURST_SECONDS];
    const wait = ((values[at + Field.LEVEL] - size) * 1000) / average;
    if (wait > 0 || values[at + Field.BURST_SECONDS] <= 1) {
      return Math.max(0, wait);
    }
    return Math.max(0, ((values[at + Field.BURST_LEVEL] - burst * sliceOfSecond) * 1000) / burst);
  }

  #leak(): void {
    const values = this.#numbers;
    // Threads' clocks differ a little: time that has leaked once must not do so again.
    const now = Math.max(this.#now(), values[leakedNumber]);
    const seconds = (now - values[leakedNumber]) / 1000;
    values[leakedNumber] = now;
    for (let at = 0; at < bucketCount * Field.COUNT; at += Field.COUNT) {
      const leak = values[at + Field.AVERAGE] * seconds;
      const burstLeak = values[at + Field.BURST] * seconds;
      values[at + Field.LEVEL] = Math.max(0, values[at + Field.LEVEL] - leak);
      values[at + Field.BURST_LEVEL] = Math.max(0, values[at + Field.BURST_LEVEL] - burstLeak);
    }
  }

  #now(): number {
    return performance.now() + this.#clockMs;
  }

  #lock(): void {
    for (let waits = 0; waits < lockMsMax; waits++) {
      // Pairs with the store of whoever held it: the numbers are its.
      if (Atomics.compareExchange(this.#words, lockWord, 0, 1) === 0) {
        return;
      }
      Atomics.wait(this.#words, lockWord, 1, 1);
    }
  }

  #unlock(): void {
    Atomics.store(this.#words, lockWord, 0);
    Atomics.notify(this.#words, lockWord, 1);
  }
}
