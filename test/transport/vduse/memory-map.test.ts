/** The memory map of a device: whatever the IOTLB says, it is mapped whole or refused. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { closeFd, duplicateFd, viewBytes } from '../../../src/native/fd.js';
import { createMemoryFile } from '../../../src/native/memory.js';
import type { VduseDeviceFile } from '../../../src/transport/vduse/device-file.js';
import { VduseMemoryMap } from '../../../src/transport/vduse/memory-map.js';
import { mappedBytes } from '../../support/mapped.js';
import { openFdCount } from '../../support/resources.js';

const file = createMemoryFile('iotlb', 1 << 20);
after(() => closeFd(file));

interface Entry {
  readonly start: bigint;
  readonly last: bigint;
  readonly offset?: number;
  readonly access?: number;
}

/** A device of which only the IOTLB is asked. */
function deviceWith(find: (start: bigint) => Entry | undefined): VduseDeviceFile {
  const device = {
    name: 'disk0',
    iotlbMap({ start }: { start: bigint }) {
      const entry = find(start);
      return entry === undefined ? undefined : { offset: 0, access: 3, ...entry, fd: duplicateFd(file) };
    },
  };
  return device as unknown as VduseDeviceFile;
}

const inOrder =
  (entries: () => readonly Entry[]) =>
  (start: bigint): Entry | undefined =>
    entries().find(({ last }) => last >= start);

test('maps what there is, once, with its offset and access', () => {
  const entries: Entry[] = [
    { start: 0x1000n, last: 0x2fffn, access: 1 },
    { start: 0x10_0000_0000n, last: 0x10_0000_0fffn, offset: 0x4000, access: 2 },
  ];
  const map = new VduseMemoryMap(deviceWith(inOrder(() => entries)));
  assert.equal(map.regions.length, 0);
  const fds = openFdCount();
  map.refresh();
  const regions = map.regions.map(({ hostAddress, ...rest }) => rest);
  assert.deepEqual(regions, [
    { start: 0x1000, length: 0x2000, access: 1 },
    { start: 0x10_0000_0000, length: 0x1000, access: 2 },
  ]);
  assert.equal(openFdCount(), fds, 'the map holds its file, not its descriptor');
  const [{ hostAddress }] = map.regions;
  entries.push({ start: 0x20_0000_0000n, last: 0x20_0000_ffffn });
  map.refresh();
  assert.equal(map.regions.length, 3);
  assert.equal(map.regions[0].hostAddress, hostAddress);
  viewBytes(map.regions[2].hostAddress, 0x10000).fill(0x7e, 0x4000, 0x5000);
  assert.equal(mappedBytes('memfd:iotlb'), 0x2000 + 0x1000 + 0x10000);
  map.close();
  assert.equal(mappedBytes('memfd:iotlb'), 0);
  assert.equal(map.regions.length, 0);
});

test('a range that does not end at a page is mapped for all that', () => {
  const map = new VduseMemoryMap(deviceWith(inOrder(() => [{ start: 0n, last: 0x1234n }])));
  map.refresh();
  assert.equal(map.regions[0].length, 0x1235);
  map.close();
});

for (const [what, find] of [
  ['a range beyond 2^53', inOrder(() => [{ start: 0n, last: (1n << 53n) + 5n }])],
  [
    'a range that ends before it begins',
    (start: bigint) => (start === 0n ? { start: 0x2000n, last: 0x1000n } : undefined),
  ],
  ['a range that is not the one asked for, again and again', () => ({ start: 0x1000n, last: 0x1fffn })],
  ['more ranges than are taken', (start: bigint) => ({ start, last: start + 0xfffn })],
] as const) {
  test(`${what} is refused, and nothing stays mapped`, { timeout: 20_000 }, () => {
    const map = new VduseMemoryMap(deviceWith(find));
    const fds = openFdCount();
    assert.throws(() => map.refresh(), { code: 'PROTOCOL', message: /'disk0'/ });
    assert.equal(openFdCount(), fds);
    map.close();
    assert.equal(mappedBytes('memfd:iotlb'), 0);
  });
}

test('a range that can not be mapped throws, and what was mapped is given back by close', () => {
  const map = new VduseMemoryMap(
    deviceWith(
      inOrder(() => [
        { start: 0n, last: 0xfffn },
        { start: 0x1000n, last: 0x1fffn, offset: 1 },
      ]),
    ),
  );
  const fds = openFdCount();
  assert.throws(() => map.refresh(), { code: 'SYSTEM_CALL' });
  assert.equal(openFdCount(), fds);
  assert.equal(map.regions.length, 1);
  map.close();
  assert.equal(mappedBytes('memfd:iotlb'), 0);
});
