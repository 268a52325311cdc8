/** The request table against lists of segments. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { closeSpareArenas } from '../../src/block/iovec-arenas.js';
import { RequestTable } from '../../src/block/request-table.js';
import { viewBytes } from '../../src/native/fd.js';
import { propertyRuns } from '../support/property.js';
import { isMapped } from '../support/resources.js';

interface Segment {
  address: number;
  length: number;
}

/** Both the typed arrays and the struct iovec that the kernel reads. */
function segmentsOf(table: RequestTable, slot: number): Segment[] {
  const count = table.segmentCount[slot];
  const iovec = new DataView(viewBytes(table.iovecAddress(slot), Math.max(16, count * 16)).buffer);
  return Array.from({ length: count }, (_, n) => {
    const segment = { address: table.segmentAddress(slot, n), length: table.segmentLength(slot, n) };
    assert.equal(iovec.getBigUint64(n * 16, true), BigInt(segment.address));
    assert.equal(iovec.getBigUint64(n * 16 + 8, true), BigInt(segment.length));
    return segment;
  });
}

/** The bytes that a list names, as ranges that join where they can. */
function joined(segments: readonly Segment[]): Segment[] {
  const out: Segment[] = [];
  for (const { address, length } of segments) {
    const last = out.at(-1);
    if (last !== undefined && last.address + last.length === address && last.length + length < 2 ** 32) {
      last.length += length;
    } else {
      out.push({ address, length });
    }
  }
  return out;
}

const high = 0x7fff_0000_0000;
const segment = fc.oneof(
  fc.record({
    address: fc.integer({ min: 1, max: 64 }).map((n) => n * 4096),
    length: fc.constantFrom(4096, 8192),
  }),
  fc.record({
    address: fc.integer({ min: high, max: high + 2 ** 34 }),
    length: fc.integer({ min: 1, max: 2 ** 31 }),
  }),
);

test('segments join, overflow and are advanced like the list that they were made of', () => {
  fc.assert(
    fc.property(
      fc.array(segment, { minLength: 1, maxLength: 40 }),
      fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 6 }),
      fc.boolean(),
      (given, cuts, neighbour) => {
        const table = new RequestTable(3, 32);
        const other = table.take();
        assert.ok(table.addSegment(other, 4096, 512));
        const slot = table.take();
        const list = neighbour
          ? given.flatMap(({ address, length }) => [
              { address, length },
              { address: address + length, length: 512 },
            ])
          : given;
        const model: Segment[] = [];
        for (const one of list) {
          const fits = joined([...model, one]).length <= 32;
          assert.equal(table.addSegment(slot, one.address, one.length), fits);
          if (!fits) {
            break;
          }
          model.push(one);
        }
        let left = joined(model);
        const total = left.reduce((sum, { length }) => sum + length, 0);
        assert.equal(table.length[slot], total);
        table.offset[slot] = 1 << 20;
        let done = 0;
        for (const cut of cuts) {
          const bytes = Math.floor(cut * (total - done));
          table.advance(slot, bytes);
          done += bytes;
          let drop = bytes;
          left = left.flatMap(({ address, length }) => {
            const dropped = Math.min(drop, length);
            drop -= dropped;
            return dropped === length ? [] : [{ address: address + dropped, length: length - dropped }];
          });
          assert.deepEqual(segmentsOf(table, slot), left);
          assert.equal(table.length[slot], total - done);
          assert.equal(table.offset[slot], (1 << 20) + done);
          if (left.length > 0) {
            assert.equal(table.firstAddress[slot], left[0].address);
          }
        }
        assert.deepEqual(segmentsOf(table, other), [{ address: 4096, length: 512 }]);
        table.close();
      },
    ),
    propertyRuns(150),
  );
});

test('slots are unique while taken, clean when taken again, last in first out', () => {
  const table = new RequestTable(4, 2);
  const slots = [table.take(), table.take(), table.take(), table.take()];
  assert.deepEqual([...slots].sort(), [0, 1, 2, 3]);
  assert.equal(table.inFlight, 4);
  const [first] = slots;
  table.addSegment(first, 4096, 100);
  table.addSegment(first, 8192, 100);
  table.advance(first, 150);
  table.flags[first] = 3;
  table.release(first);
  assert.equal(table.inFlight, 3);
  assert.equal(table.take(), first);
  assert.deepEqual(
    [table.flags[first], table.offset[first], table.length[first], table.segmentCount[first]],
    [0, 0, 0, 0],
  );
  assert.ok(table.addSegment(first, 4096, 512));
  assert.ok(table.addSegment(first, 8192, 512));
  assert.ok(!table.addSegment(first, 16384, 512));
  assert.equal(table.length[first], 1024);
  table.close();
});

test('the next table takes the arena of one that was closed; what is spare is unmapped in the end', () => {
  closeSpareArenas();
  const table = new RequestTable(256, 1024);
  const address = table.iovecAddress(255);
  table.close();
  assert.ok(isMapped(address));
  const other = new RequestTable(128, 1024);
  const next = new RequestTable(256, 1024);
  assert.equal(next.iovecAddress(255), address);
  assert.notEqual(other.iovecAddress(0), next.iovecAddress(0));
  other.close();
  next.close();
  closeSpareArenas();
  assert.ok(!isMapped(address));
});

test('no more arenas are kept than queues need to start again', () => {
  const tables = Array.from({ length: 17 }, () => new RequestTable(256, 1024));
  const addresses = tables.map((table) => table.iovecAddress(0));
  for (const table of tables) {
    table.close();
  }
  assert.equal(addresses.filter(isMapped).length, 16);
  closeSpareArenas();
  assert.equal(addresses.filter(isMapped).length, 0);
});
