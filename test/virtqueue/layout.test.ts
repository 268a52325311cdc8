import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  AVAIL,
  availableRingBytes,
  crossesEvent,
  DESC,
  descriptorTableBytes,
  hasFeature,
  RING_F,
  USED,
  usedRingBytes,
} from '../../src/virtqueue/layout.js';
import { propertyRuns } from '../support/property.js';

/** Publishes element after element and looks whether one of them is the one that was asked for. */
function crossesEventNaively(event: number, current: number, previous: number): boolean {
  for (let index = previous; index !== current; index = (index + 1) % 65536) {
    if (index === event) {
      return true;
    }
  }
  return false;
}

const index16 = fc.oneof(fc.integer({ min: 0, max: 65535 }), fc.integer({ min: 65500, max: 65535 }));

describe('split virtqueue layout', () => {
  it('has the sizes of the table in 2.7, with the event indices', () => {
    for (const size of [1, 2, 4, 256, 32768]) {
      assert.equal(descriptorTableBytes(size), 16 * size);
      assert.equal(availableRingBytes(size), 6 + 2 * size);
      assert.equal(usedRingBytes(size), 6 + 8 * size);
    }
  });

  it('aligns the parts as 2.7 does', () => {
    assert.deepEqual([DESC.alignment, AVAIL.alignment, USED.alignment], [16, 2, 4]);
  });

  it('asks for a notification exactly when the element at the event index is published', () => {
    fc.assert(
      fc.property(
        index16,
        fc.integer({ min: 0, max: 40 }),
        fc.integer({ min: -45, max: 45 }),
        (from, by, at) => {
          const current = (from + by) & 0xffff;
          const event = (from + at) & 0xffff;
          assert.equal(crossesEvent(event, current, from), crossesEventNaively(event, current, from));
        },
      ),
      propertyRuns(3000),
    );
  });

  it('does so over any distance', () => {
    fc.assert(
      fc.property(index16, index16, index16, (event, current, previous) => {
        assert.equal(crossesEvent(event, current, previous), crossesEventNaively(event, current, previous));
      }),
      propertyRuns(500),
    );
  });

  it('crosses nothing when nothing was published', () => {
    for (const index of [0, 1, 32767, 32768, 65535]) {
      assert.equal(crossesEvent(index, index, index), false);
    }
  });

  it('finds feature bits above 32', () => {
    assert.equal(hasFeature(1n << 33n, RING_F.ACCESS_PLATFORM), true);
    assert.equal(hasFeature(1n << 33n, RING_F.VERSION_1), false);
    assert.equal(hasFeature(1n << 40n, RING_F.RING_RESET), true);
  });
});
