import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import fc from 'fast-check';
import { limits } from '../../src/base/limits.js';
import { GuestMemory, MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { closeFd, viewBytes } from '../../src/native/fd.js';
import { createMemoryFile, mapFile, unmap } from '../../src/native/memory.js';
import { naivePieces, naiveRegionAt } from '../support/guest.js';
import { propertyRuns } from '../support/property.js';
import { isVduseError } from '../support/vduse-error.js';

const gib = 2 ** 30;

const access = fc.constantFrom<MemoryAccess>(MemoryAccess.READ, MemoryAccess.WRITE, MemoryAccess.READ_WRITE);
const gap = fc.oneof(
  { weight: 3, arbitrary: fc.constant(0) },
  { weight: 2, arbitrary: fc.integer({ min: 1, max: 16 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1, max: 2 ** 40 }) },
);
const regionLength = fc.oneof(
  fc.integer({ min: 1, max: 32 }),
  fc.integer({ min: 4096, max: 65536 }),
  fc.integer({ min: 4 * gib - 8, max: 64 * gib }),
);

/** Regions in any order, many of them adjacent, at host addresses that are never touched. */
const regionList = fc
  .array(fc.record({ gap, length: regionLength, access }), { minLength: 1, maxLength: 12 })
  .chain((plans) => {
    let address = 0;
    const regions = plans.map((plan, n) => {
      const start = address + plan.gap;
      address = start + plan.length;
      return { start, length: plan.length, hostAddress: (n + 1) * 2 ** 41, access: plan.access };
    });
    return fc.shuffledSubarray(regions, { minLength: regions.length });
  });

/** An address near a border of one of the regions, or anywhere. */
function pickAddress(
  regions: readonly MemoryRegion[],
  pick: { n: number; by: number; end: boolean },
): number {
  const region = regions[pick.n % regions.length];
  return Math.max(0, region.start + (pick.end ? region.length : 0) + pick.by);
}

const addressPick = fc.record({
  n: fc.nat(100),
  by: fc.oneof(fc.integer({ min: -3, max: 3 }), fc.integer({ min: -70000, max: 70000 })),
  end: fc.boolean(),
});
const rangeLength = fc.oneof(
  fc.constantFrom(0, 1, 2 ** 31, 2 ** 32 - 1),
  fc.nat(40),
  fc.nat(70000),
  fc.nat(2 ** 32 - 1),
);

describe('guest memory: what an address means', () => {
  it('translates like a naive search', () => {
    fc.assert(
      fc.property(
        regionList,
        fc.array(fc.tuple(addressPick, rangeLength, access), { minLength: 1, maxLength: 30 }),
        (regions, questions) => {
          // One object for all questions: the region of the last hit must not leak into the next answer.
          const memory = new GuestMemory(regions);
          for (const [pick, length, wanted] of questions) {
            const address = pickAddress(regions, pick);
            const region = naiveRegionAt(regions, address);
            const fits =
              region !== undefined &&
              address + length <= region.start + region.length &&
              (region.access & wanted) === wanted;
            const expected = fits ? region.hostAddress + (address - region.start) : 0;
            assert.equal(memory.translate(address, length, wanted), expected);
            const contiguous = region === undefined ? 0 : region.start + region.length - address;
            assert.equal(memory.contiguousLength(address), contiguous);
          }
        },
      ),
      propertyRuns(300),
    );
  });

  it('covers a buffer that crosses regions piece by piece', () => {
    fc.assert(
      fc.property(regionList, addressPick, fc.nat(300), access, (regions, pick, length, wanted) => {
        const memory = new GuestMemory(regions);
        const address = pickAddress(regions, pick);
        const expected = naivePieces(regions, { address: BigInt(address), length }, wanted);
        const hosts: number[] = [];
        let done = 0;
        while (done < length) {
          const piece = Math.min(length - done, memory.contiguousLength(address + done));
          const host = memory.translate(address + done, piece, wanted);
          if (host === 0) {
            break;
          }
          hosts.push(host);
          done += piece;
        }
        assert.equal(done === length, expected !== undefined);
        if (expected !== undefined) {
          assert.deepEqual(
            hosts,
            expected.map((piece) => piece.hostAddress),
          );
        }
      }),
      propertyRuns(500),
    );
  });

  it('knows the last byte and not the one after it', () => {
    const start = 2 ** 40 + 12345;
    const memory = new GuestMemory([{ start, length: 100, hostAddress: 4096, access: MemoryAccess.READ }]);
    assert.equal(memory.translate(start + 99, 1, MemoryAccess.READ), 4096 + 99);
    assert.equal(memory.translate(start + 99, 2, MemoryAccess.READ), 0);
    assert.equal(memory.translate(start + 100, 1, MemoryAccess.READ), 0);
    assert.equal(memory.translate(start - 1, 1, MemoryAccess.READ), 0);
    assert.equal(memory.contiguousLength(start + 99), 1);
    assert.equal(memory.contiguousLength(start + 100), 0);
  });

  it('wants every right that is asked for', () => {
    const at = (start: number, wanted: MemoryAccess) => ({
      start,
      length: 16,
      hostAddress: 4096,
      access: wanted,
    });
    const memory = new GuestMemory([
      at(0, MemoryAccess.READ),
      at(16, MemoryAccess.WRITE),
      at(32, MemoryAccess.READ_WRITE),
    ]);
    const answers = (wanted: MemoryAccess) =>
      [0, 16, 32].map((start) => memory.translate(start, 16, wanted) !== 0);
    assert.deepEqual(answers(MemoryAccess.READ), [true, false, true]);
    assert.deepEqual(answers(MemoryAccess.WRITE), [false, true, true]);
    assert.deepEqual(answers(MemoryAccess.READ_WRITE), [false, false, true]);
  });

  it('takes regions up to the last address that a double counts exactly, and nothing beyond', () => {
    const end = Number.MAX_SAFE_INTEGER;
    const memory = new GuestMemory([
      { start: end - 8192, length: 8192, hostAddress: 4096, access: MemoryAccess.READ_WRITE },
    ]);
    assert.equal(memory.translate(end - 1, 1, MemoryAccess.READ), 4096 + 8191);
    assert.equal(memory.translate(end - 1, 2, MemoryAccess.READ), 0);
    assert.equal(memory.translate(end - 1, 2 ** 32 - 1, MemoryAccess.READ), 0);
    assert.equal(memory.translate(2 ** 53, 1, MemoryAccess.READ), 0);
  });

  it('maps nothing without regions', () => {
    const memory = new GuestMemory([]);
    assert.equal(memory.translate(0, 0, MemoryAccess.READ), 0);
    assert.equal(memory.contiguousLength(0), 0);
    assert.equal(memory.locate(0, 0, MemoryAccess.READ), undefined);
  });
});

describe('guest memory: maps that are refused', () => {
  const region = (start: number, length: number) => ({
    start,
    length,
    hostAddress: 4096,
    access: MemoryAccess.READ_WRITE,
  });
  const refused = (regions: MemoryRegion[]) =>
    assert.throws(() => new GuestMemory(regions), isVduseError('PROTOCOL'));

  it('refuses overlaps, in any order', () => {
    refused([region(0, 4096), region(4095, 1)]);
    refused([region(4095, 1), region(0, 4096)]);
    refused([region(0, 4096), region(0, 4096)]);
    refused([region(0, 8192), region(4096, 16)]);
  });

  it('refuses empty, negative and fractional ranges, and those beyond 2^53', () => {
    refused([region(0, 0)]);
    refused([region(-4096, 8192)]);
    refused([region(8192, -4096)]);
    refused([region(0.5, 16)]);
    refused([region(Number.MAX_SAFE_INTEGER, 1)]);
    refused([region(2 ** 63, 4096)]);
    refused([region(Number.NaN, 4096)]);
  });

  it('refuses more regions than the limit', () => {
    const many = Array.from({ length: limits.memoryRegionsMax + 1 }, (_, n) => region(n * 16, 16));
    const memory = new GuestMemory(many.slice(1));
    assert.equal(memory.translate(16 * limits.memoryRegionsMax, 16, MemoryAccess.READ), 4096);
    refused(many);
  });
});

describe('guest memory: another map', () => {
  const region = (start: number, hostAddress: number, access: MemoryAccess) => ({
    start,
    length: 4096,
    hostAddress,
    access,
  });

  it('takes the place of the old one, which is forgotten', () => {
    const memory = new GuestMemory([
      region(0, 4096, MemoryAccess.READ),
      region(4096, 8192, MemoryAccess.READ),
    ]);
    assert.equal(memory.translate(10, 1, MemoryAccess.READ), 4106);
    memory.update([region(0, 65536, MemoryAccess.WRITE)]);
    assert.equal(memory.translate(10, 1, MemoryAccess.READ), 0);
    assert.equal(memory.translate(10, 1, MemoryAccess.WRITE), 65546);
    assert.equal(memory.contiguousLength(4096), 0);
    memory.update([]);
    assert.equal(memory.contiguousLength(10), 0);
  });

  it('keeps the views of what stays as it was, and of nothing else', () => {
    const fd = createMemoryFile('vduse-test-views', 8192);
    const hostAddress = mapFile({ fd, length: 8192, offset: 0, readable: true, writable: true });
    closeFd(fd);
    const one = region(8192, hostAddress, MemoryAccess.READ);
    const other = region(65536, hostAddress + 4096, MemoryAccess.READ);
    const memory = new GuestMemory([other, one]);
    const views = () => [one, other].map(({ start }) => memory.locate(start, 16, MemoryAccess.READ));
    const before = views();
    memory.update([region(0, hostAddress, MemoryAccess.READ), other, one]);
    assert.ok(views().every((view, n) => view === before[n]));
    memory.update([
      { ...one, access: MemoryAccess.READ_WRITE },
      { ...other, hostAddress },
    ]);
    assert.ok(views().every((view, n) => view !== undefined && view !== before[n]));
    assert.equal(memory.translate(other.start, 16, MemoryAccess.READ), hostAddress);
    unmap(hostAddress, 8192);
  });

  it('stays the old one when the new one is refused', () => {
    const memory = new GuestMemory([region(0, 4096, MemoryAccess.READ)]);
    const overlapping = [region(0, 8192, MemoryAccess.READ), region(1, 8192, MemoryAccess.READ)];
    assert.throws(() => memory.update(overlapping));
    assert.equal(memory.translate(10, 1, MemoryAccess.READ), 4106);
  });
});

describe('guest memory: views', () => {
  // A sparse file: only the pages that are touched exist. Longer than two views.
  const fileLength = 9 * gib + 8192;
  const start = 3 * gib + 4096;
  let hostAddress = 0;
  let memory: GuestMemory;

  before(() => {
    const fd = createMemoryFile('vduse-test-guest', fileLength);
    hostAddress = mapFile({ fd, length: fileLength, offset: 0, readable: true, writable: true });
    closeFd(fd);
    memory = new GuestMemory([{ start, length: fileLength, hostAddress, access: MemoryAccess.READ_WRITE }]);
  });

  after(() => unmap(hostAddress, fileLength));

  it('reaches every part of a region of more than 4 GiB', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.integer({ min: 0, max: fileLength - 16 }),
          fc
            .tuple(fc.integer({ min: 1, max: 4 }), fc.integer({ min: -20, max: 20 }))
            .map(([n, by]) => n * 2 * gib + by),
          fc.integer({ min: fileLength - 40, max: fileLength - 16 }),
        ),
        fc.integer({ min: 1, max: 0xffff }),
        (offset, value) => {
          const view = memory.locate(start + offset, 16, MemoryAccess.READ_WRITE);
          assert.ok(view);
          // Writes through the view and reads through a map of its own.
          view.setUint32(memory.locatedOffset + 12, value, true);
          const page = viewBytes(hostAddress + offset, 16);
          assert.equal(page[12] + page[13] * 256, value);
        },
      ),
      propertyRuns(200),
    );
  });

  it('has room for the whole range in the view', () => {
    const length = 2 ** 31;
    for (const offset of [0, 1, 2 * gib - 1, 2 * gib, 4 * gib + 5, fileLength - length]) {
      const view = memory.locate(start + offset, length, MemoryAccess.READ);
      assert.ok(view);
      assert.ok(memory.locatedOffset + length <= view.byteLength);
    }
  });

  it('locates nothing outside, beyond its rights, or longer than a view', () => {
    assert.equal(memory.locate(start + fileLength - 15, 16, MemoryAccess.READ), undefined);
    assert.equal(memory.locate(start - 1, 1, MemoryAccess.READ), undefined);
    assert.equal(memory.locate(start, 2 ** 31 + 1, MemoryAccess.READ), undefined);
    const readOnly = new GuestMemory([{ start: 0, length: 4096, hostAddress, access: MemoryAccess.READ }]);
    assert.equal(readOnly.locate(0, 16, MemoryAccess.WRITE), undefined);
    assert.equal(readOnly.locate(0, 16, MemoryAccess.READ_WRITE), undefined);
    assert.ok(readOnly.locate(0, 16, MemoryAccess.READ));
  });

  it('gives the same view again', () => {
    const first = memory.locate(start + 5, 16, MemoryAccess.READ);
    assert.equal(memory.locate(start + 4096, 16, MemoryAccess.READ), first);
  });
});
