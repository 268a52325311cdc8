import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { VduseError } from '../../src/base/errors.js';
import {
  formatCount,
  formatDuration,
  formatSize,
  parseSize,
  roundUpToSectors,
} from '../../src/cli/support/size.js';
import { propertyRuns } from '../support/property.js';

describe('parseSize', () => {
  const sizes: [string, number][] = [
    ['0', 0],
    ['512', 512],
    ['512B', 512],
    ['1k', 1024],
    ['1K', 1024],
    ['10G', 10 * 2 ** 30],
    ['10Gi', 10 * 2 ** 30],
    ['10GiB', 10 * 2 ** 30],
    ['10gib', 10 * 2 ** 30],
    ['1.5G', 1.5 * 2 ** 30],
    ['0.1K', 103],
    ['2T', 2 * 2 ** 40],
    ['7P', 7 * 2 ** 50],
    [' 1M ', 2 ** 20],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ];
  for (const [text, bytes] of sizes) {
    it(`${JSON.stringify(text)} is ${bytes} bytes`, () => assert.equal(parseSize(text), bytes));
  }

  for (const text of [
    '',
    'G',
    '-1',
    '+1',
    '1e9',
    '0x10',
    '1,5G',
    '1.5',
    '1 G',
    '10GB',
    '1i',
    '1iB',
    '1X',
    '8P',
  ]) {
    it(`${JSON.stringify(text)} is refused with advice`, () => {
      assert.throws(
        () => parseSize(text),
        (error) =>
          error instanceof VduseError && error.code === 'INVALID_ARGUMENT' && error.hint !== undefined,
      );
    });
  }

  it('says why 10GB is refused', () => {
    assert.throws(() => parseSize('10GB'), /the unit 'GB' means different things/);
  });

  it('takes every whole number of bytes, and of a unit, exactly', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.constantFrom('', 'K', 'M', 'G', 'T'), (count, unit) => {
        const bytes = BigInt(count) * 1024n ** BigInt(['', 'K', 'M', 'G', 'T'].indexOf(unit));
        if (bytes <= BigInt(Number.MAX_SAFE_INTEGER)) {
          assert.equal(parseSize(`${count}${unit}`), Number(bytes));
        } else {
          assert.throws(() => parseSize(`${count}${unit}`));
        }
      }),
      propertyRuns(500),
    );
  });

  it('never throws anything but a VduseError', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        try {
          const bytes = parseSize(text);
          assert.ok(Number.isSafeInteger(bytes) && bytes >= 0);
        } catch (error) {
          assert.ok(error instanceof VduseError);
        }
      }),
      propertyRuns(1000),
    );
  });
});

it('rounds up to whole sectors', () => {
  fc.assert(
    fc.property(fc.nat({ max: 2 ** 40 }), (bytes) => {
      const rounded = roundUpToSectors(bytes);
      assert.equal(rounded % 512, 0);
      assert.ok(rounded >= bytes && rounded < bytes + 512);
    }),
    propertyRuns(200),
  );
});

describe('formatting', () => {
  it('of sizes', () => {
    const shown = [0, 512, 1023, 1024, 1536, 2 ** 20 - 1, 2 ** 20, 10 * 2 ** 30, 1.25 * 2 ** 40].map(
      formatSize,
    );
    assert.deepEqual(shown, [
      '0 B',
      '512 B',
      '1023 B',
      '1 KiB',
      '1.5 KiB',
      '1.0 MiB',
      '1 MiB',
      '10 GiB',
      '1.3 TiB',
    ]);
  });

  it('of sizes is never wider than a column has room for', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (bytes) => assert.ok(formatSize(bytes).length <= 9, formatSize(bytes))),
      propertyRuns(500),
    );
  });

  it('of counts', () => {
    const shown = [0, 7, 999, 999.6, 1000, 12_345, 99_960, 1_000_000].map(formatCount);
    assert.deepEqual(shown, ['0', '7', '999', '1.0k', '1.0k', '12.3k', '100k', '1.0M']);
  });

  it('of durations', () => {
    const shown = [0, 59_999, 60_000, 3_599_000, 12_000_000].map(formatDuration);
    assert.deepEqual(shown, ['0 s', '59 s', '1 min 0 s', '59 min 59 s', '3 h 20 min']);
  });
});
