import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { SystemCallError } from '../../src/base/errors.js';
import { closeFd, viewBytes, writeFd } from '../../src/native/fd.js';
import { addressOf, viewMemory } from '../../src/native/ffi.js';
import {
  copyMemory,
  createMemoryFile,
  fillZeroes,
  isZero,
  mapAnonymous,
  mapFile,
  pageSize,
  unmap,
} from '../../src/native/memory.js';
import { propertyRuns } from '../support/property.js';
import { isMapped, openFdCount } from '../support/resources.js';

const gib = 2 ** 30;

function withMap(length: number, use: (address: number) => void): void {
  const address = mapAnonymous(length);
  try {
    use(address);
  } finally {
    unmap(address, length);
  }
}

describe('memory outside the heap', () => {
  it('is zeroed, aligned to a page, and gone after unmap', () => {
    const address = mapAnonymous(10 * pageSize);
    assert.equal(address % pageSize, 0);
    assert.equal(isMapped(address), true);
    assert.equal(isMapped(address + 10 * pageSize - 1), true);
    assert.equal(isZero(address, 10 * pageSize), true);
    unmap(address, 10 * pageSize);
    assert.equal(isMapped(address), false);
  });

  it('may be reserved far beyond what the machine has', () => {
    withMap(512 * gib, (address) => {
      const last = viewBytes(address + 512 * gib - 16, 16);
      last[15] = 1;
      assert.equal(isZero(address + 512 * gib - 16, 15), true);
      assert.equal(isZero(address + 512 * gib - 16, 16), false);
    });
  });

  it('is shared by the views and the maps of one file', () => {
    const length = 4 * pageSize;
    const fd = createMemoryFile('vduse-test', length);
    const both = mapFile({ fd, length, offset: 0, readable: true, writable: true });
    const part = mapFile({ fd, length: pageSize, offset: 2 * pageSize, readable: true, writable: false });
    // A map outlives the descriptor.
    closeFd(fd);
    viewBytes(both + 2 * pageSize, 16).set([1, 2, 3], 5);
    assert.deepEqual([...viewBytes(part, 8)], [0, 0, 0, 0, 0, 1, 2, 3]);
    unmap(both, length);
    unmap(part, pageSize);
    assert.equal(isMapped(both), false);
    assert.equal(isMapped(part), false);
  });

  it('is a file of any size that exists in memory only', () => {
    const fds = openFdCount();
    const fd = createMemoryFile('vduse-test', 6 * gib);
    const address = mapFile({ fd, length: 6 * gib, offset: 0, readable: true, writable: true });
    viewBytes(address + 5 * gib, 1)[0] = 7;
    assert.equal(viewBytes(address + 5 * gib - 1, 4)[1], 7);
    unmap(address, 6 * gib);
    assert.equal(writeFd(fd, new Uint8Array(3)), 3);
    closeFd(fd);
    assert.equal(openFdCount(), fds);
  });

  it('has views of up to 4 GiB, several of the same bytes', () => {
    withMap(5 * gib, (address) => {
      const large = new Uint8Array(viewMemory(address, 2 ** 32));
      const same = new Uint8Array(viewMemory(address, 2 ** 32));
      large[2 ** 32 - 1] = 9;
      assert.equal(same[2 ** 32 - 1], 9);
      assert.equal(addressOf(large), address);
    });
  });

  it('is refused with the name of the call and of the error', () => {
    const refused = (call: () => unknown, syscall: string, name: string) =>
      assert.throws(
        call,
        (error) =>
          error instanceof SystemCallError &&
          error.code === 'SYSTEM_CALL' &&
          error.syscall === syscall &&
          error.errnoName === name &&
          error.message.includes(name),
      );
    refused(() => mapAnonymous(0), 'mmap', 'EINVAL');
    refused(() => mapAnonymous(2 ** 47), 'mmap', 'ENOMEM');
    refused(
      () => mapFile({ fd: 1_000_000, length: 1, offset: 0, readable: true, writable: false }),
      'mmap',
      'EBADF',
    );
    refused(() => unmap(1, 4096), 'munmap', 'EINVAL');
    refused(() => createMemoryFile('x'.repeat(300), 1), 'memfd_create', 'EINVAL');
    const fds = openFdCount();
    refused(() => createMemoryFile('vduse-test', -1), 'ftruncate', 'EINVAL');
    assert.equal(openFdCount(), fds, 'a file that could not get its size stays open');
  });
});

describe('operations by address', () => {
  const length = 3 << 20;

  it('copy, clear and compare like typed arrays', () => {
    withMap(length, (address) => {
      const bytes = viewBytes(address, length);
      const at = fc.nat(1000);
      fc.assert(
        fc.property(
          fc.uint8Array({ minLength: 0, maxLength: 200 }),
          at,
          at,
          fc.nat(200),
          (data, from, to, clear) => {
            bytes.fill(0xcc, 0, 4096);
            bytes.set(data, from);
            copyMemory(address + 2048 + to, address + from, data.length);
            assert.deepEqual(bytes.slice(2048 + to, 2048 + to + data.length), data);
            assert.equal(bytes[2048 + to - 1], 0xcc);
            assert.equal(bytes[2048 + to + data.length], 0xcc);
            fillZeroes(address + 2048 + to, clear);
            assert.equal(isZero(address + 2048 + to, clear), true);
            assert.equal(isZero(address + 2048 + to, clear + data.length + 1), false);
          },
        ),
        propertyRuns(200),
      );
    });
  });

  it('find a single byte in ranges longer than the block they compare with', () => {
    withMap(length, (address) => {
      const bytes = viewBytes(address, length);
      for (const position of [
        0,
        1,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
        (2 << 20) - 1,
        2 << 20,
        length - 1,
      ]) {
        assert.equal(isZero(address, length), true);
        bytes[position] = 1;
        assert.equal(isZero(address, length), false, `byte ${position}`);
        assert.equal(isZero(address, position), true);
        assert.equal(isZero(address + position + 1, length - position - 1), true);
        bytes[position] = 0;
      }
    });
  });
});
