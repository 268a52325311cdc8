/** Buffers come aligned and long enough, are used again, and go back to the system. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { AlignedPool } from '../../src/memory/aligned-pool.js';
import { viewBytes } from '../../src/native/fd.js';
import { pageSize } from '../../src/native/memory.js';
import { propertyRuns } from '../support/property.js';
import { isMapped } from '../support/resources.js';

/** What the pool keeps for later, bytes. */
const kept = 16 << 20;

describe('the aligned pool', () => {
  test('gives buffers that begin at a page and hold what was asked for', () => {
    const pool = new AlignedPool();
    const lengths = [
      1,
      511,
      512,
      pageSize - 1,
      pageSize,
      pageSize + 1,
      65535,
      65536,
      65537,
      1 << 20,
      (1 << 20) + 1,
    ];
    const buffers = lengths.map((length) => ({ length, address: pool.take(length) }));
    buffers.forEach(({ length, address }, n) => {
      assert.equal(address % pageSize, 0);
      viewBytes(address, length).fill(n + 1);
    });
    buffers.forEach(({ length, address }, n) => {
      const bytes = viewBytes(address, length);
      assert.ok(bytes[0] === n + 1 && bytes[length - 1] === n + 1, `buffer ${n} is its own`);
    });
    for (const { length, address } of buffers) {
      pool.release(address, length);
    }
    pool.close();
    assert.ok(buffers.every(({ address }) => !isMapped(address)));
  });

  test('gives a released buffer again, to lengths that it holds only', () => {
    const pool = new AlignedPool();
    const address = pool.take(5000);
    pool.release(address, 5000);
    const longer = pool.take(8193);
    const same = pool.take(8192);
    assert.equal(same, address);
    assert.notEqual(longer, address);
    const another = pool.take(5000);
    assert.notEqual(another, address);
    for (const [one, length] of [
      [same, 8192],
      [longer, 8193],
      [another, 5000],
    ]) {
      pool.release(one, length);
    }
    pool.close();
  });

  test('keeps a bounded number of bytes', () => {
    const pool = new AlignedPool();
    const length = 4 << 20;
    const addresses = Array.from({ length: 6 }, () => pool.take(length));
    for (const address of addresses) {
      pool.release(address, length);
    }
    assert.deepEqual(addresses.map(isMapped), [true, true, true, true, false, false]);
    // What was taken again makes room for others.
    const again = pool.take(length);
    assert.equal(again, addresses[3]);
    const small = pool.take(pageSize);
    pool.release(small, pageSize);
    assert.ok(isMapped(small));
    pool.release(again, length);
    assert.ok(!isMapped(again));
    const huge = pool.take(kept + 1);
    pool.release(huge, kept + 1);
    assert.ok(!isMapped(huge));
    pool.close();
    assert.deepEqual(addresses.map(isMapped), new Array(6).fill(false));
  });

  test('can be used after it was closed', () => {
    const pool = new AlignedPool();
    pool.close();
    const address = pool.take(100);
    pool.release(address, 100);
    assert.ok(isMapped(address));
    pool.close();
    assert.ok(!isMapped(address));
  });

  test('throws when the system has none', () => {
    assert.throws(() => new AlignedPool().take(2 ** 47), { code: 'SYSTEM_CALL', errnoName: 'ENOMEM' });
  });

  test('never hands out one buffer twice', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.record({ take: fc.boolean(), length: fc.integer({ min: 1, max: 3 << 20 }), which: fc.nat() }),
          { maxLength: 60 },
        ),
        (steps) => {
          const pool = new AlignedPool();
          const out: { address: number; length: number; mark: number }[] = [];
          steps.forEach(({ take, length, which }, mark) => {
            if (take || out.length === 0) {
              const address = pool.take(length);
              viewBytes(address, length)[0] = mark;
              viewBytes(address, length)[length - 1] = mark;
              out.push({ address, length, mark });
            } else {
              const [one] = out.splice(which % out.length, 1);
              const bytes = viewBytes(one.address, one.length);
              assert.deepEqual([bytes[0], bytes[one.length - 1]], [one.mark, one.mark]);
              pool.release(one.address, one.length);
            }
          });
          for (const { address, length } of out) {
            pool.release(address, length);
          }
          pool.close();
        },
      ),
      propertyRuns(60),
    );
  });
});
