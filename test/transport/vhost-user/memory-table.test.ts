import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { test } from 'node:test';
import { closeFd, createEventFd, viewBytes } from '../../../src/native/fd.js';
import { createMemoryFile, pageSize } from '../../../src/native/memory.js';
import { MemoryTable } from '../../../src/transport/vhost-user/memory-table.js';
import type { RegionDescription } from '../../../src/transport/vhost-user/request.js';
import { mapCount } from '../../support/resources.js';

const name = 'memory-table-test';

function region(over: Partial<RegionDescription> = {}): RegionDescription {
  return { guestAddress: 0x10_0000, length: pageSize, userAddress: 0x7f00_0000_0000, fileOffset: 0, ...over };
}

function withFile(size: number, use: (fd: number) => void): void {
  const fd = createMemoryFile(name, size);
  try {
    use(fd);
  } finally {
    closeFd(fd);
  }
}

const protocol = { code: 'PROTOCOL' };

test('regions are mapped where their files say, whatever the page they begin in', () => {
  withFile(4 * pageSize, (fd) => {
    const table = new MemoryTable();
    table.add(region({ length: 4 * pageSize }), fd);
    const all = viewBytes(table.regions[0].hostAddress, 4 * pageSize);
    all[pageSize + 100] = 77;
    table.add(region({ guestAddress: 2 ** 45, userAddress: 0, length: 300, fileOffset: pageSize + 100 }), fd);
    assert.equal(viewBytes(table.regions[1].hostAddress, 300)[0], 77);
    assert.equal(table.guestAddressOf(299), 2 ** 45 + 299);
    assert.throws(() => table.guestAddressOf(300), protocol);
    assert.equal(table.guestAddressOf(0x7f00_0000_0001), 0x10_0001);
    assert.equal(mapCount(name), 2);
    table.remove(region({ guestAddress: 2 ** 45, userAddress: 0, length: 300, fileOffset: 12345 }));
    assert.equal(mapCount(name), 1);
    table.close();
    assert.equal(mapCount(name), 0);
  });
});

test('a region of more than 4 GiB, at an address beyond them', () => {
  const length = 5 * 2 ** 30;
  withFile(length + 2 ** 32, (fd) => {
    const table = new MemoryTable();
    table.add(region({ guestAddress: 2 ** 40, length, fileOffset: 2 ** 32 }), fd);
    const end = viewBytes(table.regions[0].hostAddress + length - 8, 8);
    end[7] = 1;
    assert.equal(end[7], 1);
    table.close();
  });
});

test('what is no memory is refused: a short file, no file, nothing, too much', () => {
  withFile(2 * pageSize, (fd) => {
    const table = new MemoryTable();
    for (const wrong of [
      { length: 2 * pageSize + 1 },
      { fileOffset: pageSize + 1 },
      { fileOffset: 2 ** 52 },
      { length: 0 },
      { guestAddress: Number.MAX_SAFE_INTEGER },
      { userAddress: Number.MAX_SAFE_INTEGER },
      { length: Number.MAX_SAFE_INTEGER },
    ]) {
      assert.throws(() => table.add(region(wrong), fd), protocol, JSON.stringify(wrong));
    }
    const eventFd = createEventFd();
    assert.throws(() => table.add(region(), eventFd), protocol);
    closeFd(eventFd);
    const readOnly = openSync('/proc/self/exe', 'r');
    assert.throws(() => table.add(region(), readOnly), { code: 'SYSTEM_CALL' });
    closeSync(readOnly);
    assert.deepEqual(table.regions, []);
    assert.equal(mapCount(name), 0);
  });
});

test('regions do not overlap, for the guest or for the front-end', () => {
  withFile(4 * pageSize, (fd) => {
    const table = new MemoryTable();
    table.add(region({ length: 2 * pageSize }), fd);
    assert.throws(() => table.add(region({ userAddress: 0 }), fd), protocol);
    assert.throws(() => table.add(region({ guestAddress: 0 }), fd), protocol);
    table.add(
      region({ guestAddress: 0x10_0000 + 2 * pageSize, userAddress: 0x7f00_0000_0000 + 2 * pageSize }),
      fd,
    );
    assert.throws(() => table.remove(region({ length: pageSize })), protocol);
    assert.throws(() => table.remove(region({ length: 2 * pageSize, userAddress: 5 })), protocol);
    assert.equal(table.regions.length, 2);
    table.close();
  });
});

test('there are 509 slots', () => {
  withFile(pageSize, (fd) => {
    const table = new MemoryTable();
    const at = (n: number) => region({ guestAddress: n * pageSize, userAddress: n * pageSize });
    for (let n = 0; n < 509; n++) {
      table.add(at(n), fd);
    }
    assert.throws(() => table.add(at(509), fd), protocol);
    table.remove(at(100));
    table.add(at(509), fd);
    table.close();
    assert.equal(mapCount(name), 0);
  });
});
