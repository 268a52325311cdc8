import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { barChart, escapeXml, lineChart, powersOfTwoAround, roundUp } from '../../bench/support/svg.js';
import { propertyRuns } from '../support/property.js';

/** Tags that open and close in order, and nothing that is not a number where one belongs. */
function assertWellFormed(svg: string): void {
  assert.match(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg" /);
  assert.doesNotMatch(svg, /NaN|undefined|Infinity/);
  const open: string[] = [];
  for (const [, closing, name, , selfClosing] of svg.matchAll(/<(\/?)(\w+)((?: [\w-]+="[^"<]*")*)(\/?)>/g)) {
    if (closing === '/') assert.equal(open.pop(), name);
    else if (selfClosing !== '/') open.push(name);
  }
  assert.deepEqual(open, []);
}

function barWidths(svg: string, colour: string): { x: number; width: number; height: number }[] {
  const pattern = new RegExp(
    `<rect x="([\\d.]+)" y="[\\d.]+" width="([\\d.]+)" height="([\\d.]+)" fill="${colour}"/>`,
    'g',
  );
  return [...svg.matchAll(pattern)]
    .map(([, x, width, height]) => ({ x: Number(x), width: Number(width), height: Number(height) }))
    .filter(({ height }) => height === 9);
}

const bar = (value: number) => ({ value, low: value, high: value });

describe('plots', () => {
  test('the marks of a logarithmic axis enclose what is drawn', () => {
    assert.deepEqual(powersOfTwoAround([0.7, 3]), [0.5, 1, 2, 4]);
    assert.deepEqual(powersOfTwoAround([2]), [2, 4]);
    assert.deepEqual(powersOfTwoAround([]), [1, 2]);
    const values = fc.array(fc.double({ min: 1e-3, max: 1e6, noNaN: true }), { minLength: 1 });
    fc.assert(
      fc.property(values, (drawn) => {
        const marks = powersOfTwoAround(drawn);
        assert.ok(marks[0] <= Math.min(...drawn) && marks[marks.length - 1] >= Math.max(...drawn));
      }),
      propertyRuns(100),
    );
  });

  test('a linear axis ends at a round number that is not below the highest value', () => {
    assert.equal(roundUp(1), 1);
    assert.equal(roundUp(313_000), 500_000);
    assert.equal(roundUp(0.021), 0.025);
    assert.equal(roundUp(0), 1);
    fc.assert(
      fc.property(fc.double({ min: 1e-6, max: 1e9, noNaN: true }), (value) => {
        assert.ok(roundUp(value) >= value * 0.999_99 && roundUp(value) <= value * 2.6);
      }),
      propertyRuns(100),
    );
  });

  test('bars start at 1: twice as fast is as long to the right as half as fast to the left', () => {
    const svg = barChart({
      title: 'a < b & "c"',
      subtitle: '',
      series: ['one'],
      groups: [
        {
          title: 'group',
          rows: [
            { label: 'twice', bars: [bar(2)] },
            { label: 'half', bars: [bar(0.5)] },
            { label: 'not measured', bars: [undefined] },
          ],
        },
      ],
    });
    assertWellFormed(svg);
    assert.ok(svg.includes('a &lt; b &amp; &quot;c&quot;'));
    const [twice, half, ...others] = barWidths(svg, '#1f6fb4');
    assert.equal(others.length, 0);
    assert.equal(twice.width, half.width);
    assert.ok(Math.abs(half.x + half.width - twice.x) < 0.2);
  });

  test('any ratios make a well-formed bar chart', () => {
    const ratio = fc.double({ min: 1e-4, max: 1e4, noNaN: true });
    const row = fc.record({
      label: fc.string(),
      bars: fc.tuple(ratio.map(bar), fc.option(ratio.map(bar), { nil: undefined })),
    });
    fc.assert(
      fc.property(fc.array(row), fc.string(), (rows, title) => {
        assertWellFormed(
          barChart({ title: escapeXml(title), subtitle: '', series: ['a', 'b'], groups: [{ title, rows }] }),
        );
      }),
      propertyRuns(30),
    );
  });

  test('lines: a point for each value, at the height of the value', () => {
    const svg = lineChart({
      title: 'lines',
      subtitle: '',
      series: ['a', 'b'],
      columns: 1,
      panels: [
        {
          title: 'IOPS',
          xLabel: 'queues',
          xs: [1, 2, 4],
          ys: [
            [0, 5, 10],
            [10, undefined, 10],
          ],
        },
      ],
    });
    assertWellFormed(svg);
    const heights = [...svg.matchAll(/<circle cx="[\d.]+" cy="([\d.]+)"/g)].map(([, y]) => Number(y));
    assert.equal(heights.length, 5);
    assert.ok(heights[0] > heights[1] && heights[1] > heights[2]);
    assert.equal(heights[2], heights[3]);
    assert.ok(Math.abs((heights[0] + heights[2]) / 2 - heights[1]) < 0.2);
  });

  test('one value and no values are drawn too', () => {
    const panel = { title: '', xLabel: '', xs: [1], ys: [[undefined]] };
    assertWellFormed(lineChart({ title: '', subtitle: '', series: ['a'], columns: 2, panels: [panel] }));
    assertWellFormed(barChart({ title: '', subtitle: '', series: [], groups: [] }));
  });
});
