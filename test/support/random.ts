/** A small generator whose runs can be repeated: for long random programs that fast-check could not shrink. */
import { propertyRuns } from './property.js';

export class Random {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed;
    this.#state = seed >>> 0;
  }

  /** From 0 to 2^32 - 1 (the splitmix32 steps). */
  next(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let value = this.#state;
    value = Math.imul(value ^ (value >>> 16), 0x21f0aaad);
    value = Math.imul(value ^ (value >>> 15), 0x735a2d97);
    return (value ^ (value >>> 15)) >>> 0;
  }

  /** An integer from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + (this.next() % (high - low + 1));
  }

  /** True once in `n` times. */
  oneIn(n: number): boolean {
    return this.next() % n === 0;
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.next() % choices.length];
  }

  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at++) {
      bytes[at] = this.next();
    }
    return bytes;
  }

  /** Cuts `total` into `count` lengths that add up to it; some may be 0. */
  cut(total: number, count: number): number[] {
    const points = Array.from({ length: count - 1 }, () => this.between(0, total)).sort((a, b) => a - b);
    return [...points, total].map((point, n) => point - (n === 0 ? 0 : points[n - 1]));
  }
}

/** The generator of a test: from VDUSE_SEED, or another one each time. The test tells its seed. */
export function testRandom(): Random {
  return new Random(propertyRuns(1).seed ?? (Date.now() ^ (process.pid << 16)) >>> 0);
}

/** How many steps a long random program takes, scaled by VDUSE_TEST_SCALE. */
export function scaled(steps: number): number {
  return propertyRuns(steps).numRuns;
}
