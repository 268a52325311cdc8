import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { extentsForReply } from '../../src/nbd/extents.js';
import type { NbdExtent } from '../../src/nbd/nbd-export.js';
import { Request } from '../../src/nbd/request.js';

const data = (length: number): NbdExtent => ({ length, hole: false, zero: false });
const hole = (length: number): NbdExtent => ({ length, hole: true, zero: true });

function request(length: number, flags = 0): Request {
  return Object.assign(new Request(), { command: 7, length, flags });
}

describe('NBD extents', () => {
  test('end with the request', () => {
    assert.deepEqual(extentsForReply([data(512), hole(2 ** 40), data(512)], request(2048)), [
      data(512),
      hole(1536),
    ]);
    assert.deepEqual(extentsForReply([hole(100), hole(100), hole(100)], request(150)), [hole(150)]);
    assert.deepEqual(extentsForReply([data(100)], request(150)), [data(100)], 'less than asked for is fine');
  });

  test('are joined before they are counted', () => {
    const zeroData: NbdExtent = { length: 8, hole: false, zero: true };
    const extents = [data(8), data(8), zeroData, zeroData, hole(8)];
    assert.deepEqual(extentsForReply(extents, request(4096)), [
      data(16),
      { ...zeroData, length: 16 },
      hole(8),
    ]);
    assert.deepEqual(extentsForReply(extents, request(4096, 8)), [data(16)], 'REQ_ONE');
  });

  test('are at most as many as a reply may have', () => {
    const many = Array.from({ length: 40_000 }, (_, n) => (n % 2 === 0 ? data(1) : hole(1)));
    assert.equal(extentsForReply(many, request(40_000)).length, 1 << 14);
  });

  test('are data where the export says nothing', () => {
    assert.deepEqual(extentsForReply([], request(4096)), [data(4096)]);
    assert.deepEqual(extentsForReply([hole(0)], request(4096)), [data(4096)]);
  });
});
