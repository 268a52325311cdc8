import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { outstandingHeads, type RingHistory } from '../../src/virtqueue/outstanding-heads.js';
import { propertyRuns } from '../support/property.js';

interface Step {
  /** Used elements that the driver takes back first. */
  readonly takeBack: number;
  /** Requests that it then makes. */
  readonly make: number;
  /** Which of the requests that are out the device ends, by their age. */
  readonly end: readonly number[];
}

interface Simulation {
  readonly size: number;
  readonly depth: number;
  readonly steps: readonly Step[];
}

/** Linux's driver with its list of free descriptors, and a device that ends requests in any order. */
function simulate({ size, depth, steps }: Simulation): RingHistory & { truth: number[] } {
  const below = Array.from({ length: size }, (_, n) => (n + 1) % size);
  const next = new Uint16Array(size);
  let top = 0;
  let freeCount = size;
  const made: number[] = [];
  const used: number[] = [];
  const out: number[] = [];
  const filled = new Set<number>();
  let taken = 0;
  for (const step of steps) {
    for (let n = 0; n < step.takeBack && taken < used.length; n++) {
      const head = used[taken++];
      below[head] = top;
      top = head;
      freeCount++;
    }
    for (let n = 0; n < step.make && freeCount > size - depth; n++) {
      const head = top;
      top = below[head];
      next[head] = top;
      freeCount--;
      made.push(head);
      out.push(head);
      filled.add(head);
    }
    for (const age of step.end) {
      used.push(...out.splice(Math.min(age, out.length - 1), out.length === 0 ? 0 : 1));
    }
  }
  return {
    size,
    made: made.slice(-size),
    used: used.slice(-size),
    outstanding: out.length,
    wasFilled: (head) => filled.has(head),
    next: (head) => next[head],
    truth: out.sort((a, b) => a - b),
  };
}

/** `ageMax`: how many requests may overtake one that is older. */
function simulations(ageMax: number): fc.Arbitrary<Simulation> {
  const step = fc.record({
    takeBack: fc.nat({ max: 4 }),
    make: fc.nat({ max: 4 }),
    end: fc.array(fc.nat({ max: ageMax }), { maxLength: 4 }),
  });
  return fc.constantFrom(32, 64, 128, 256).chain((size) =>
    fc.record({
      size: fc.constant(size),
      depth: fc.integer({ min: 1, max: size }),
      steps: fc.array(step, { maxLength: size * 2, size: 'max' }),
    }),
  );
}

function sorted(heads: number[] | undefined): number[] | undefined {
  return heads?.sort((a, b) => a - b);
}

describe('outstandingHeads', () => {
  const history = (
    rings: Pick<RingHistory, 'made' | 'used' | 'outstanding'>,
    next: readonly number[] = [],
  ): RingHistory => ({ size: 8, ...rings, wasFilled: (head) => head < 5, next: (head) => next[head] });

  it('of a queue that was never used', () => {
    assert.deepEqual(outstandingHeads(history({ made: [], used: [], outstanding: 0 })), []);
  });

  it('of one that overtook another', () => {
    const rings = { made: [0, 1, 2], used: [1], outstanding: 2 };
    assert.deepEqual(sorted(outstandingHeads(history(rings, [1, 2, 3]))), [0, 2]);
  });

  it('of a head that was made available again', () => {
    const rings = { made: [0, 1, 1], used: [1], outstanding: 2 };
    assert.deepEqual(sorted(outstandingHeads(history(rings, [1, 2]))), [0, 1]);
  });

  it('can not be told where the rings have forgotten them', () => {
    // At least one of the heads 1 to 4 has been out for longer than the rings remember.
    const rings = { made: [0, 0, 0, 0, 0, 0, 0, 0], used: [0, 0, 0, 0, 0, 0, 0, 0], outstanding: 2 };
    assert.equal(outstandingHeads(history(rings, [1])), undefined);
  });

  it('finds all of them when requests end in order', () => {
    fc.assert(
      fc.property(simulations(0), (simulation) => {
        const { truth, ...history } = simulate(simulation);
        assert.deepEqual(sorted(outstandingHeads(history)), truth);
      }),
      propertyRuns(60),
    );
  });

  it('finds all of them, but for rare exceptions, when requests overtake one another', () => {
    const wrong: number[][] = [];
    let runs = 0;
    fc.assert(
      fc.property(simulations(8), (simulation) => {
        const { truth, ...history } = simulate(simulation);
        const found = sorted(outstandingHeads(history));
        runs++;
        if (JSON.stringify(found) !== JSON.stringify(truth)) {
          wrong.push(truth);
        }
      }),
      propertyRuns(60),
    );
    assert.ok(wrong.length <= Math.max(1, runs / 20), `${wrong.length} of ${runs} were not found`);
  });

  it('finds them without what Linux leaves in the descriptors, when requests end in order', () => {
    fc.assert(
      fc.property(simulations(0), (simulation) => {
        const { truth, ...history } = simulate(simulation);
        assert.deepEqual(sorted(outstandingHeads({ ...history, next: undefined })), truth);
      }),
      propertyRuns(60),
    );
  });

  it('finds as many as there are, or says that it can not, whatever the rings have', () => {
    const head = fc.nat({ max: 7 });
    const rings = fc.record({
      made: fc.array(head, { maxLength: 8 }),
      used: fc.array(head, { maxLength: 8 }),
      outstanding: fc.nat({ max: 8 }),
    });
    fc.assert(
      fc.property(rings, (ring) => {
        const found = outstandingHeads(history(ring, [1, 2, 3, 4, 5, 6, 7, 0]));
        if (found !== undefined) {
          assert.equal(found.length, ring.outstanding);
          assert.equal(new Set(found).size, found.length);
        }
      }),
      propertyRuns(2000),
    );
  });
});
