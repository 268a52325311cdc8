/** The IOMMU in software by itself, and its allocator against a naive one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { PageAllocator } from '../../src/memory/page-allocator.js';
import { viewBytes } from '../../src/native/fd.js';
import { addressOf } from '../../src/native/ffi.js';
import { Iotlb } from '../../src/software-vduse/iotlb.js';
import { IovaDomain } from '../../src/software-vduse/iova-domain.js';
import { propertyRuns } from '../support/property.js';
import { mapCount, openFdCount } from '../support/resources.js';

function withDomain(work: (domain: IovaDomain) => void): void {
  const before = { fds: openFdCount(), maps: mapCount('vduse-') };
  const domain = new IovaDomain(1 << 20);
  try {
    work(domain);
  } finally {
    domain.close();
  }
  assert.deepEqual({ fds: openFdCount(), maps: mapCount('vduse-') }, before);
}

test('coherent memory is zeroed, also when it is used again', () => {
  withDomain((domain) => {
    const first = domain.allocateCoherent(5000);
    viewBytes(first.hostAddress, 5000).fill(0xa5);
    domain.freeCoherent(first.iova, 5000);
    const second = domain.allocateCoherent(5000);
    assert.equal(second.iova, first.iova);
    assert(viewBytes(second.hostAddress, 5000).every((byte) => byte === 0));
  });
});

test('a map that is refused leaves none', () => {
  withDomain((domain) => {
    const map = { start: 0x10000, length: 4096, fd: 0, offset: 0, access: 3 };
    domain.setMaps([map]);
    assert.throws(() => domain.setMaps([map, { ...map, start: 0x10fff }]), { code: 'INVALID_ARGUMENT' });
    assert.deepEqual(domain.iotlb.maps, []);
  });
});

test('the first range that a question touches is found, by its first byte or its last', () => {
  const iotlb = new Iotlb();
  const map = (start: number, length: number) => ({ start, length, fd: 0, offset: 0, access: 3 });
  iotlb.add(map(300, 10));
  iotlb.add(map(100, 10));
  const found = (start: number, last: number) => iotlb.find(start, last)?.start;
  assert.deepEqual(
    [found(0, 99), found(0, 100), found(109, 109), found(110, 299), found(109, 300), found(110, 300)],
    [undefined, 100, 100, undefined, 100, 300],
  );
  for (const [start, length] of [
    [91, 10],
    [109, 1],
    [100, 10],
    [50, 500],
    [0, 0],
    [-1, 5],
    [2 ** 53, 1],
  ]) {
    assert.throws(() => iotlb.add(map(start, length)), { code: 'INVALID_ARGUMENT' });
  }
  iotlb.add(map(110, 190));
  iotlb.remove(109, 110);
  assert.deepEqual(
    iotlb.maps.map(({ start }) => start),
    [300],
  );
});

test('sizes of the bounce region have bounds', () => {
  for (const size of [0, 4096, (1 << 20) - 4096, (1 << 20) + 1, (1 << 30) + 4096, Number.NaN]) {
    assert.throws(() => new IovaDomain(size).close(), { code: 'INVALID_ARGUMENT' }, `${size}`);
  }
});

test('a bounce region gives addresses until it is full, and gives them back', () => {
  withDomain((domain) => {
    const buffer = new Uint8Array(domain.mapBytesMax);
    const address = addressOf(buffer);
    const all = domain.mapBuffer(address, buffer.length, 'to-device');
    assert.equal(all, 4096);
    assert.equal(domain.mapBuffer(address, 1, 'to-device'), 0);
    domain.unmapBuffer(all, address, buffer.length, 'to-device');
    assert.notEqual(domain.mapBuffer(address, buffer.length, 'to-device'), 0);
    assert.equal(domain.bytesCopied, 2 * buffer.length);
  });
});

test('only buffers that lie in shared memory as a whole are not bounced', () => {
  withDomain((domain) => {
    const shared = domain.addShared(8192);
    const end = shared.hostAddress + 8192;
    for (const [address, length, direct] of [
      [shared.hostAddress, 8192, true],
      [end - 512, 512, true],
      [end - 512, 513, false],
      [end, 1, false],
      [shared.hostAddress - 1, 2, false],
    ] as const) {
      // Nothing is copied for a read until it has ended.
      const iova = domain.mapBuffer(address, length, 'from-device');
      assert.equal(iova >= domain.bounceBytes, direct, `${length} bytes at ${address - shared.hostAddress}`);
      if (direct) {
        assert.equal(iova - shared.iova, address - shared.hostAddress);
      }
      domain.unmapBuffer(iova, address, length, 'to-device');
    }
    assert.equal(domain.bytesCopied, 0);
  });
});

test('runs of pages never overlap, and a free one is found', () => {
  const step = fc.record({ take: fc.boolean(), pages: fc.integer({ min: 1, max: 12 }), which: fc.nat() });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.array(step, { maxLength: 80 }), (count, steps) => {
      const allocator = new PageAllocator(count);
      const used = new Array<boolean>(count).fill(false);
      const runs: { first: number; pages: number }[] = [];
      for (const { take, pages, which } of steps) {
        if (!take && runs.length > 0) {
          const [run] = runs.splice(which % runs.length, 1);
          allocator.free(run.first, run.pages);
          used.fill(false, run.first, run.first + run.pages);
          continue;
        }
        const first = allocator.allocate(pages);
        const fits = (at: number): boolean =>
          at + pages <= count && !used.slice(at, at + pages).some((taken) => taken);
        if (first < 0) {
          assert(!used.some((_, at) => fits(at)), 'there was a free run');
        } else {
          assert(fits(first), 'the run was not free');
          used.fill(true, first, first + pages);
          runs.push({ first, pages });
        }
        assert.equal(allocator.freePages, used.filter((taken) => !taken).length);
      }
    }),
    propertyRuns(500),
  );
});
