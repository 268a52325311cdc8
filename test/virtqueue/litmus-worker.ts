/**
 * One side of the store-buffering litmus test: in each round it stores to its own word and then loads the other's.
 * Both sides store the round's number, so a load that finds less has passed the other side's store.
 */
import { isMainThread, parentPort, workerData } from 'node:worker_threads';
import { viewMemory } from '../../src/native/ffi.js';

export interface LitmusWork {
  /** Memory that was mapped through FFI, as rings are. */
  readonly address: number;
  readonly side: 0 | 1;
  readonly atomic: boolean;
}

export const roundsMax = 200_000;
const msMax = 400;
/** Words, each on a cache line of its own: the sides' arrivals, their stores, and the last round. */
const arrivals = [0, 32];
const stores = [64, 96];
const lastRound = 128;
const resultsBytes = 1024;
export const litmusBytes = resultsBytes + 2 * roundsMax;

export function litmusViews(address: number): { words: Int32Array; results: Uint8Array[] } {
  const memory = viewMemory(address, litmusBytes);
  return {
    words: new Int32Array(memory, 0, resultsBytes / 4),
    results: [0, 1].map((side) => new Uint8Array(memory, resultsBytes + side * roundsMax, roundsMax)),
  };
}

function storeAndLoad(words: Int32Array, own: number, other: number, round: number): number {
  Atomics.store(words, own, round);
  return Atomics.load(words, other);
}

function storeAndLoadPlainly(words: Int32Array, own: number, other: number, round: number): number {
  words[own] = round;
  return words[other];
}

/** Returns the rounds that both sides made. */
export function runLitmus({ address, side, atomic }: LitmusWork): number {
  const { words, results } = litmusViews(address);
  const [own, other] = side === 0 ? stores : [...stores].reverse();
  const [here, there] = side === 0 ? arrivals : [...arrivals].reverse();
  const found = results[side];
  const step = atomic ? storeAndLoad : storeAndLoadPlainly;
  let end = Number.POSITIVE_INFINITY;
  for (let round = 1; round < roundsMax; round++) {
    // One side ends it, before it arrives: the other one waits for it there, and sees it.
    if (side === 0 && round % 64 === 0 && performance.now() > end) {
      Atomics.store(words, lastRound, round - 1);
      return round - 1;
    }
    Atomics.store(words, here, round);
    while (Atomics.load(words, there) < round) {
      const last = Atomics.load(words, lastRound);
      if (last !== 0 && round > last) {
        return last;
      }
    }
    if (round === 1) {
      // The other side is there: its start does not count.
      end = performance.now() + msMax;
    }
    found[round] = step(words, own, other, round) >= round ? 1 : 0;
  }
  return roundsMax - 1;
}

if (!isMainThread) {
  parentPort?.postMessage(runLitmus(workerData as LitmusWork));
}
