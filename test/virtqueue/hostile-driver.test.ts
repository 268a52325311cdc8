import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import type { DescriptorChain } from '../../src/virtqueue/descriptor-chain.js';
import { TestGuest } from '../support/guest.js';
import { propertyRuns } from '../support/property.js';
import { QueuePair } from '../support/queue-pair.js';
import { RawRing } from '../support/raw-ring.js';
import { type NaiveQueue, popNaively, readChainNaively } from './naive-device.js';

const guest = new TestGuest(4 << 20);
after(() => guest.close());

/** Small regions, some adjacent and some not, so that random ranges often meet a border. */
const payloadOffset = 2 << 20;
const place = (start: number, offset: number, length: number, access: MemoryAccess) =>
  guest.region({ start, offset: payloadOffset + offset, length, access });
const payload = [
  place(0, 8192, 100, MemoryAccess.READ_WRITE),
  place(100, 4096, 1, MemoryAccess.READ_WRITE),
  place(101, 12288, 300, MemoryAccess.READ),
  place(401, 0, 50, MemoryAccess.WRITE),
  place(500, 16384, 4000, MemoryAccess.READ_WRITE),
  place(4500, 65536, 700, MemoryAccess.READ_WRITE),
  place(2 ** 53 - 1 - 4096, 131072, 4096, MemoryAccess.READ_WRITE),
];
const tableEntries = 8;

const borders = payload.flatMap((region) => [region.start, region.start + region.length]);
const address = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 500, max: 5000 }).map(BigInt) },
  {
    weight: 4,
    arbitrary: fc
      .tuple(fc.constantFrom(...borders), fc.integer({ min: -20, max: 20 }))
      .map(([border, by]) => BigInt(Math.max(0, border + by))),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(
        fc.constantFrom(2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n),
        fc.integer({ min: -9, max: 9 }),
      )
      .map(([power, by]) => BigInt.asUintN(64, power + BigInt(by))),
  },
  { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }) },
);
const length = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 0, max: 64 }) },
  { weight: 2, arbitrary: fc.integer({ min: 0, max: 600 }) },
  { weight: 1, arbitrary: fc.constantFrom(0xffff_ffff, 0x8000_0000, 0x7fff_ffff, 2 ** 16) },
);
const flags = fc.oneof(
  { weight: 3, arbitrary: fc.constant(1) },
  { weight: 2, arbitrary: fc.constantFrom(2, 3) },
  { weight: 2, arbitrary: fc.constantFrom(0, 2) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 7 }) },
  { weight: 1, arbitrary: fc.integer({ min: 0, max: 0xffff }).map((bits) => bits & ~4) },
);
const next = fc.oneof(fc.integer({ min: 0, max: 9 }), fc.integer({ min: 0, max: 0xffff }));
const descriptor = fc.oneof(
  { weight: 5, arbitrary: fc.record({ address, length, flags, next, toTable: fc.constant(false) }) },
  {
    // A descriptor that names an indirect table, mostly a proper one.
    weight: 1,
    arbitrary: fc.record({
      address: fc.integer({ min: -2, max: 6 }).map((n) => BigInt(n * 16)),
      length: fc.oneof(
        fc.integer({ min: 0, max: tableEntries }).map((n) => n * 16),
        fc.integer({ min: 0, max: 200 }),
      ),
      flags: fc.constantFrom(4, 4, 4, 4, 5, 6),
      next,
      toTable: fc.constant(true),
    }),
  },
);

const segmentsMax = 1025;

/** Whether each segment lies in one region, with the right that its direction wants. */
function checkSegments(chain: DescriptorChain, regions: readonly MemoryRegion[]): void {
  for (let n = 0; n < chain.count; n++) {
    const host = chain.hostAddress[n];
    const wanted = n < chain.readableCount ? MemoryAccess.READ : MemoryAccess.WRITE;
    const inside = regions.some(
      (region) =>
        host >= region.hostAddress &&
        host + chain.length[n] <= region.hostAddress + region.length &&
        (region.access & wanted) === wanted,
    );
    assert.ok(inside, `segment ${n} of ${chain.length[n]} bytes at 0x${host.toString(16)}`);
  }
}

describe('a hostile driver', () => {
  it('gets the answer of a naive reading for any descriptors', () => {
    let accepted = 0;
    let split = 0;
    fc.assert(
      fc.property(
        fc.constantFrom(1, 4, 8),
        fc.boolean(),
        fc.array(descriptor, { minLength: 8, maxLength: 8 }),
        fc.array(descriptor, { minLength: tableEntries, maxLength: tableEntries }),
        (size, negotiated, table, indirect) => {
          const pair = new QueuePair({ size, tableEntries: negotiated ? tableEntries : 0 }, guest, payload);
          const raw = new RawRing(guest, pair.parts, size);
          const indirectStart = BigInt(pair.parts.indirect.start);
          for (const [n, { toTable, ...value }] of table.slice(0, size).entries()) {
            raw.descriptor(n, { ...value, address: toTable ? indirectStart + value.address : value.address });
          }
          // The region of the tables is `size` tables long; without negotiation it is one entry.
          for (const [n, value] of indirect.slice(0, negotiated ? tableEntries : 1).entries()) {
            raw.descriptor(n, value, 'indirect');
          }
          const queue: NaiveQueue = {
            guest,
            regions: pair.deviceRegions,
            parts: pair.parts,
            size,
            indirect: negotiated,
            buffersMax: 1024,
            piecesMax: segmentsMax,
          };
          const chain = pair.device.createChain();
          for (let head = 0; head < size; head++) {
            const result = pair.device.readChain(head, chain);
            const expected = readChainNaively(queue, head);
            assert.ok(chain.count <= chain.capacity);
            if (expected === 'invalid') {
              // With two wrongs in a chain either may be named, and running out of room is one of them.
              assert.ok(result === -Errno.EINVAL || result === -Errno.EFAULT);
              continue;
            }
            if (expected === 'fault') {
              assert.equal(result, -Errno.EFAULT);
              continue;
            }
            assert.equal(result, 0);
            accepted++;
            split += chain.count > 1 ? 1 : 0;
            assert.deepEqual(
              Array.from({ length: chain.count }, (_, n) => ({
                hostAddress: chain.hostAddress[n],
                length: chain.length[n],
                writable: n >= chain.readableCount,
              })),
              expected.map(({ hostAddress, length: bytes, writable }) => ({
                hostAddress,
                length: bytes,
                writable,
              })),
            );
            const bytes = (writable: boolean) =>
              expected.reduce((total, s) => total + (s.writable === writable ? s.length : 0), 0);
            assert.deepEqual([chain.readableBytes, chain.writableBytes], [bytes(false), bytes(true)]);
          }
        },
      ),
      propertyRuns(1500),
    );
    // The generators must not only make nonsense.
    assert.ok(
      accepted > 100 && split > 50,
      `only ${accepted} chains were valid, ${split} of several segments`,
    );
  });

  it('gets an answer for rings of random bytes', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(1, 2, 16),
        fc.uint8Array({ minLength: 2048, maxLength: 2048 }),
        (size, bytes) => {
          const pair = new QueuePair({ size, tableEntries: 2 }, guest, payload);
          const { table, avail, indirect } = pair.parts;
          for (const part of [table, avail, indirect]) {
            guest.at(part.hostAddress, part.length).set(bytes.subarray(0, Math.min(part.length, 2048)));
          }
          const heads = new Uint16Array(size);
          const count = pair.device.popAvailable(heads);
          assert.ok(count === -Errno.EINVAL || (count >= 0 && count <= size));
          const chain = pair.device.createChain();
          for (let head = 0; head < size; head++) {
            const result = pair.device.readChain(head, chain);
            assert.ok(result === 0 || result === -Errno.EINVAL || result === -Errno.EFAULT);
            if (result === 0) {
              checkSegments(chain, pair.deviceRegions);
            }
          }
        },
      ),
      propertyRuns(300),
    );
  });

  it('cannot offer what it already gave, nor more than there is', () => {
    let broken = 0;
    let popped = 0;
    fc.assert(
      fc.property(
        fc.constantFrom(1, 4, 8),
        fc.integer({ min: 65530, max: 65540 }),
        fc.array(
          fc.record({
            heads: fc.array(fc.integer({ min: 0, max: 8 }), { minLength: 1, maxLength: 9 }),
            complete: fc.integer({ min: 0, max: 8 }),
            jump: fc.oneof(
              { weight: 6, arbitrary: fc.constant(0) },
              { weight: 1, arbitrary: fc.integer({ min: -3, max: 20 }) },
            ),
            distinct: fc.boolean(),
          }),
          { maxLength: 20 },
        ),
        (size, start, rounds) => {
          const pair = new QueuePair({ size, index: start }, guest, payload);
          const raw = new RawRing(guest, pair.parts, size);
          const queue: NaiveQueue = {
            guest,
            regions: [],
            parts: pair.parts,
            size,
            indirect: false,
            buffersMax: 0,
            piecesMax: 0,
          };
          const held = new Set<number>();
          const heads = new Uint16Array(size);
          let index = start & 0xffff;
          for (const round of rounds) {
            const free = Array.from({ length: size }, (_, n) => n).filter((n) => !held.has(n));
            // Half of the rounds are honest, or the ring would be broken at once each time.
            const offered = round.distinct ? free.slice(0, round.heads.length) : round.heads;
            for (const [n, head] of offered.entries()) {
              raw.availableHead(index + n, head);
            }
            raw.availableIndex = (index + offered.length + round.jump) & 0xffff;
            const expected = popNaively(queue, held, index);
            const count = pair.device.popAvailable(heads);
            if (expected === undefined) {
              assert.equal(count, -Errno.EINVAL);
              broken++;
              return;
            }
            assert.equal(count, expected.length);
            assert.deepEqual([...heads.subarray(0, count)], expected);
            popped += count;
            index = (index + count) & 0xffff;
            for (const head of expected) {
              held.add(head);
            }
            for (const head of [...held].slice(0, round.complete)) {
              pair.device.addUsed(head, 0);
              held.delete(head);
            }
            pair.device.publishUsed();
          }
        },
      ),
      propertyRuns(800),
    );
    assert.ok(broken > 100 && popped > 500, `${broken} broken rings, ${popped} heads`);
  });

  it('may change descriptors while they are read', async () => {
    const size = 8;
    const pair = new QueuePair({ size, tableEntries }, guest, payload);
    const { table, indirect } = pair.parts;
    const stop = new Int32Array(new SharedArrayBuffer(4));
    const worker = new Worker(new URL('./table-scribbler.js', import.meta.url), {
      workerData: {
        stop,
        parts: [table, indirect].map((part) => ({ address: part.hostAddress, length: part.length })),
        tableStart: indirect.start,
        borders,
      },
    });
    const exit = new Promise((resolve) => worker.once('exit', resolve));
    await new Promise((resolve) => worker.once('message', resolve));
    const chain = pair.device.createChain();
    let accepted = 0;
    let refused = 0;
    try {
      for (const end = performance.now() + 250; performance.now() < end; ) {
        for (let head = 0; head < size; head++) {
          const result = pair.device.readChain(head, chain);
          if (result === 0) {
            checkSegments(chain, pair.deviceRegions);
            accepted++;
          } else {
            refused++;
          }
        }
      }
    } finally {
      Atomics.store(stop, 0, 1);
      await exit;
    }
    assert.ok(accepted > 100 && refused > 100, `${accepted} accepted, ${refused} refused`);
  });
});
