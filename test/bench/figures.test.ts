import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { formatCount, formatRatio, formatTable, median, pairedRatio } from '../../bench/support/figures.js';
import { propertyRuns } from '../support/property.js';

const figure = fc.double({ min: 0.001, max: 1e9, noNaN: true });

describe('figures', () => {
  test('the median of an odd and of an even number of values, whatever their order', () => {
    assert.equal(median([3, 1, 2]), 2);
    assert.equal(median([4, 1, 3, 2]), 2.5);
    assert.equal(median([7]), 7);
  });

  test('half of the values are at or below the median, half at or above', () => {
    fc.assert(
      fc.property(fc.array(figure, { minLength: 1, maxLength: 20 }), (values) => {
        const middle = median(values);
        assert.ok(values.filter((value) => value <= middle).length >= values.length / 2);
        assert.ok(values.filter((value) => value >= middle).length >= values.length / 2);
      }),
      propertyRuns(200),
    );
  });

  test('ratios are taken repetition by repetition, so what slows both down cancels out', () => {
    const theirs = [100, 10, 1000];
    const ratio = pairedRatio(
      theirs.map((value) => value * 2),
      theirs,
    );
    assert.deepEqual(ratio, { median: 2, low: 2, high: 2 });
    assert.deepEqual(pairedRatio([1, 4, 3], [1, 2, 1]), { median: 2, low: 1, high: 3 });
    assert.equal(formatRatio({ median: 2, low: 1, high: 3.004 }), '2.00 (1.00 to 3.00)');
  });

  test('the lowest and the highest ratio enclose the median', () => {
    const pairs = fc.array(fc.tuple(figure, figure), { minLength: 1, maxLength: 9 });
    fc.assert(
      fc.property(pairs, (taken) => {
        const ratio = pairedRatio(
          taken.map(([ours]) => ours),
          taken.map(([, theirs]) => theirs),
        );
        assert.ok(ratio.low <= ratio.median && ratio.median <= ratio.high);
      }),
      propertyRuns(200),
    );
  });

  test('counts', () => {
    assert.equal(formatCount(9999.4), '9999');
    assert.equal(formatCount(46_149), '46.1k');
    assert.equal(formatCount(2_190_000), '2.19M');
  });

  test('a table: first column to the left, figures to the right', () => {
    const rows = [
      ['', 'IOPS'],
      ['depth 1', '5'],
      ['d', '12345'],
    ];
    assert.equal(formatTable(rows), '          IOPS\ndepth 1      5\nd        12345');
  });
});
