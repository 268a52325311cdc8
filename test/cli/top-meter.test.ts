import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { sparkline, TopMeter, topBoundaries } from '../../src/cli/support/top-meter.js';

const answer = (stats: Record<string, unknown>) => [
  { qdev: 'e', 'node-name': 'n', stats } as unknown as Record<string, never>,
];

describe('what an export does', () => {
  it('is the difference of two looks at it', () => {
    const meter = new TopMeter();
    const histogram = (bins: number[]) => ({ boundaries: [1000, 2000, 4000], bins });
    const first = { rd_operations: 10, rd_bytes: 4096, rd_latency_histogram: histogram([5, 5, 0, 0]) };
    assert.deepEqual(meter.sample(answer(first), 1000), []);
    const second = {
      ...{ rd_operations: 110, rd_bytes: 8192, wr_operations: 4, 'x-in-flight': 3, 'x-errors': 1 },
      rd_latency_histogram: histogram([5, 95, 9, 1]),
      wr_latency_histogram: histogram([0, 4, 0, 0]),
    };
    assert.deepEqual(meter.sample(answer(second), 3000), [
      {
        ...{ id: 'e', node: 'n', readsPerSecond: 50, writesPerSecond: 2 },
        ...{ readBytesPerSecond: 2048, writeBytesPerSecond: 0, p50Us: 2, p99Us: 4, inFlight: 3, errors: 1 },
      },
    ]);
    // The export is another one of the same name.
    assert.equal(meter.sample(answer({ rd_operations: 1 }), 4000)[0].readsPerSecond, 0);
    assert.equal(meter.sample(answer({}), 5000)[0].p50Us, undefined);
    assert.deepEqual(meter.sample(null, 6000), []);
  });

  it('has latencies only when somebody has set a histogram', () => {
    assert.deepEqual(TopMeter.untimed(answer({})), ['e']);
    assert.deepEqual(TopMeter.untimed(answer({ wr_latency_histogram: {} })), []);
  });

  it('is measured at boundaries that ascend', () => {
    assert.ok(topBoundaries.every((value, n) => n === 0 || value > topBoundaries[n - 1]));
    assert.ok(topBoundaries.length < 256);
  });

  it('is drawn as a curve', () => {
    assert.equal(sparkline([0, 1, 4, 8]), '▁▂▅█');
    assert.equal(sparkline([0, 0]), '▁▁');
    assert.equal(sparkline([]), '');
  });
});
