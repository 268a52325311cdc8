/** A user's block driver at the border: what is refused, what its missing methods mean. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockDevice } from '../../src/block/block-device.js';
import { defineBlockDriver, isBlockSource } from '../../src/block/define-block-driver.js';
import { openLocalNode } from '../../src/block/drivers/local-node.js';
import { MemoryDisk } from '../support/memory-disk.js';

const open = (device: BlockDevice, readOnly = false) =>
  openLocalNode({ nodeName: 'n', driver: 'mine', device, readOnly });

const read = async (): Promise<void> => {};

test('sizes and block sizes are checked', () => {
  for (const size of [1000, -512, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 60]) {
    assert.throws(() => open({ size, read }), {
      code: 'INVALID_ARGUMENT',
      message: /'mine'.*multiple of 512/,
    });
  }
  for (const blockSize of [0, 256, 1000, 8192, Number.NaN]) {
    assert.throws(
      () => open({ size: 0, blockSize, read }),
      { code: 'INVALID_ARGUMENT' },
      `blockSize ${blockSize}`,
    );
  }
  assert.throws(() => open({ size: 512, blockSize: 4096, read }), { code: 'INVALID_ARGUMENT' });
  assert.equal(open({ size: 8192, blockSize: 4096, read }).limits.requestAlignment, 4096);
});

test('a missing method is a missing ability', () => {
  const all = open(new MemoryDisk({ size: 512 }));
  assert.deepEqual(all.features, {
    flush: true,
    discard: true,
    writeZeroes: true,
    writeZeroesMayUnmap: false,
  });
  assert.equal(all.readOnly, false);
  for (const method of ['flush', 'discard', 'writeZeroes'] as const) {
    const without = open(new MemoryDisk({ size: 512, without: [method] }));
    assert.deepEqual(without.features, { ...all.features, [method]: false });
  }
  const reader = open(new MemoryDisk({ size: 512, without: ['write'] }));
  assert.equal(reader.readOnly, true);
  assert.deepEqual([reader.features.discard, reader.features.writeZeroes], [false, false]);
  assert.equal(open(new MemoryDisk({ size: 512 }), true).readOnly, true);
});

test('resize asks the driver, and is refused where it can not be', async () => {
  const disk = new MemoryDisk({ size: 512, blockSize: 512 });
  const node = open(disk);
  await node.resize(1024);
  assert.equal(node.size, 1024);
  for (const size of [1000, -512, Number.NaN]) {
    await assert.rejects(node.resize(size), { code: 'INVALID_ARGUMENT' });
  }
  assert.equal(disk.count('resize'), 1);
  await assert.rejects(open(new MemoryDisk({ size: 512, without: ['resize'] })).resize(1024), {
    code: 'NOT_SUPPORTED',
  });
  await assert.rejects(open(new MemoryDisk({ size: 512 }), true).resize(1024), { code: 'IMAGE_READ_ONLY' });
});

test('closing the node closes the device, once asked for', async () => {
  const disk = new MemoryDisk({ size: 512 });
  await open(disk).close();
  assert.equal(disk.count('close'), 1);
  await open({ size: 512, read }).close();
});

test('defineBlockDriver makes sources that open when they are used', async () => {
  const opened: number[] = [];
  const driver = defineBlockDriver({
    name: 'counted',
    open: (size: number) => {
      opened.push(size);
      return { size, read };
    },
  });
  const source = driver(1024);
  assert.deepEqual([source.driverName, opened, isBlockSource(source)], ['counted', [], true]);
  assert.equal((await source.openDevice()).size, 1024);
  assert.deepEqual(opened, [1024]);
  const failing = defineBlockDriver({
    name: 'failing',
    open: (): BlockDevice => {
      throw new Error('not today');
    },
  });
  await assert.rejects(failing().openDevice(), /not today/);
  assert.equal(isBlockSource({ driver: 'file', filename: 'x' }), false);
});
