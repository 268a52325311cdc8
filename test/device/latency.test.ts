import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  bucketStartUs,
  countLatency,
  LatencyOp,
  LatencyRecorder,
  latencyBlock,
  latencyBuckets,
} from '../../src/device/latency.js';
import { SharedDeviceState } from '../../src/device/statistics.js';
import { propertyRuns } from '../support/property.js';

describe('latency counters', () => {
  it('put a time into the bucket that it belongs to', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 29 - 1 }), (us) => {
        const blocks = new Float64Array(4 * latencyBlock);
        countLatency(blocks, LatencyOp.WRITE, us);
        const bucket = blocks.indexOf(1, latencyBlock + 1) - latencyBlock - 1;
        assert.equal(blocks[latencyBlock], us);
        assert.ok(bucketStartUs(bucket) <= us);
        assert.ok(bucket === latencyBuckets - 1 || us < bucketStartUs(bucket + 1));
      }),
      // A sum of 1 looks like a count.
      { ...propertyRuns(500), examples: [[0], [2], [3], [4], [7], [8], [2 ** 29 - 1]] },
    );
  });

  it('take what is longer than all, or less than nothing', () => {
    const blocks = new Float64Array(4 * latencyBlock);
    countLatency(blocks, LatencyOp.READ, Number.MAX_SAFE_INTEGER);
    countLatency(blocks, LatencyOp.READ, -5);
    assert.equal(blocks[latencyBuckets], 1);
    assert.equal(blocks[1], 1);
  });

  it('are kept only while somebody asks', () => {
    const state = new SharedDeviceState({ queueCount: 2 });
    const turns = { turns: 0 };
    const recorder = new LatencyRecorder(state.latencies(1), 4, turns);
    const count = (): number => {
      const sums = state.totalLatencies();
      return sums.subarray(1, latencyBlock).reduce((sum, value) => sum + value, 0);
    };
    recorder.start(0);
    recorder.end(0, LatencyOp.READ);
    assert.equal(count(), 0);
    recorder.start(1);
    state.timing = true;
    // It started untimed.
    recorder.end(1, LatencyOp.READ);
    assert.equal(count(), 0);
    recorder.start(2);
    turns.turns++;
    recorder.end(2, LatencyOp.READ);
    // A request that was never started, such as one that was refused at once.
    recorder.end(2, LatencyOp.READ);
    assert.equal(count(), 1);
    assert.equal(state.total().reads, 0);
  });
});
