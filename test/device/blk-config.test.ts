/** 5.2.3 and 5.2.4: what the device offers and says of itself, for nodes of different abilities. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { silentLogger } from '../../src/base/log.js';
import type { BlockNode } from '../../src/block/node.js';
import { BlkDevice, type BlkDeviceOptions } from '../../src/device/blk/blk-device.js';
import type { QueueHost, QueueHosts } from '../../src/device/queue-host.js';

/** Queues are not started here. */
const host: QueueHost = {
  name: 'none',
  start: () => Promise.reject(new Error('not here')),
  updateMemory() {},
  drain: () => Promise.resolve({ drained: true, availIndex: 0 } as const),
  stop: () => Promise.resolve({ drained: true, availIndex: 0 }),
};
const hosts: QueueHosts = {
  assign: (count) => Promise.resolve(new Array<QueueHost>(count).fill(host)),
  local: () => host,
};

function node(changes: Partial<BlockNode> = {}): BlockNode {
  return {
    nodeName: 'n',
    driver: 'null-co',
    filename: undefined,
    readOnly: false,
    cacheDirect: false,
    cacheNoFlush: false,
    detectZeroes: 'off',
    features: { flush: true, discard: true, writeZeroes: true, writeZeroesMayUnmap: true },
    limits: {
      requestAlignment: 512,
      physicalBlockSize: 4096,
      optimalIoSize: 1 << 20,
      discardAlignment: 4096,
    },
    size: 10 * 2 ** 30,
    engine: { kind: 'null', readZeroes: true },
    resize: () => Promise.resolve(),
    close: () => Promise.resolve(),
    ...changes,
  };
}

function create(
  changes: Partial<BlockNode> = {},
  options: Partial<BlkDeviceOptions> = {},
): Promise<BlkDevice> {
  return BlkDevice.create({ node: node(changes), hosts, logger: silentLogger, writable: true, ...options });
}

/** The bit numbers of a feature set. */
function bits(features: bigint): number[] {
  return Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => ((features >> BigInt(bit)) & 1n) === 1n);
}

const SIZE_MAX = 1;
const SEG_MAX = 2;
const RO = 5;
const BLK_SIZE = 6;
const FLUSH = 9;
const TOPOLOGY = 10;
const MQ = 12;
const DISCARD = 13;
const WRITE_ZEROES = 14;
const always = [SIZE_MAX, SEG_MAX, BLK_SIZE, TOPOLOGY];
const ring = [28, 29, 32];

test('5.2.3: features follow the abilities of the node', async () => {
  const none = { flush: false, discard: false, writeZeroes: false, writeZeroesMayUnmap: false };
  const cases: [Partial<BlockNode>, Partial<BlkDeviceOptions>, number[]][] = [
    [{}, {}, [FLUSH, DISCARD, WRITE_ZEROES]],
    [{}, { queueCount: 4 }, [FLUSH, MQ, DISCARD, WRITE_ZEROES]],
    [{ features: none }, {}, []],
    [{ features: { ...none, flush: true } }, {}, [FLUSH]],
    [{ features: { ...none, discard: true } }, {}, [DISCARD]],
    [{ features: { ...none, writeZeroes: true } }, {}, [WRITE_ZEROES]],
    // 5.2.5: nothing that changes the disk is offered with RO.
    [{ readOnly: true }, {}, [RO, FLUSH]],
    [{}, { writable: false }, [RO, FLUSH]],
  ];
  for (const [changes, options, expected] of cases) {
    const device = await create(changes, options);
    assert.deepEqual(
      bits(device.deviceFeatures),
      [...always, ...expected, ...ring].sort((a, b) => a - b),
      JSON.stringify([changes.features, options]),
    );
  }
});

test('5.2.4: the configuration space, field by field', async () => {
  const device = await create({}, { queueCount: 3, queueSize: 128 });
  const { config } = device;
  const view = new DataView(config.buffer, config.byteOffset, config.byteLength);
  assert.equal(config.length, 60);
  assert.equal(view.getBigUint64(0, true), BigInt(10 << 20) * 2n, 'capacity');
  assert.equal(view.getUint32(8, true), 4 << 20, 'size_max');
  assert.equal(view.getUint32(12, true), 126, 'seg_max');
  assert.deepEqual([...config.subarray(16, 20)], [0, 0, 0, 0], 'geometry');
  assert.equal(view.getUint32(20, true), 512, 'blk_size');
  assert.deepEqual([...config.subarray(24, 26)], [3, 0], 'physical_block_exp, alignment_offset');
  assert.equal(view.getUint16(26, true), 8, 'min_io_size');
  assert.equal(view.getUint32(28, true), 2048, 'opt_io_size');
  assert.deepEqual([...config.subarray(32, 34)], [1, 0], 'writeback');
  assert.equal(view.getUint16(34, true), 3, 'num_queues');
  assert.equal(view.getUint32(36, true), 1 << 21, 'max_discard_sectors');
  assert.equal(view.getUint32(40, true), 32, 'max_discard_seg');
  assert.equal(view.getUint32(44, true), 8, 'discard_sector_alignment');
  assert.equal(view.getUint32(48, true), 1 << 21, 'max_write_zeroes_sectors');
  assert.equal(view.getUint32(52, true), 32, 'max_write_zeroes_seg');
  assert.deepEqual([...config.subarray(56, 60)], [1, 0, 0, 0], 'write_zeroes_may_unmap');
});

test('seg_max leaves room for header and status, and no more than preadv takes', async () => {
  for (const [queueSize, expected] of [
    [4, 2],
    [256, 254],
    [1024, 1022],
    [32768, 1022],
  ] as const) {
    const { config } = await create({}, { queueSize });
    assert.equal(new DataView(config.buffer).getUint32(12, true), expected);
  }
});

test('5.2.4.1: topology counts in blocks of blk_size, which the node and the user decide', async () => {
  const limits = { requestAlignment: 4096, physicalBlockSize: 512, optimalIoSize: 0, discardAlignment: 512 };
  const device = await create({ limits, size: 4096 * 10 + 512 });
  const view = new DataView(device.config.buffer);
  assert.equal(device.blockSize, 4096);
  assert.equal(view.getBigUint64(0, true), 80n, 'whole blocks only');
  assert.equal(view.getUint8(24), 0);
  assert.equal(view.getUint16(26, true), 1);
  assert.equal(view.getUint32(28, true), 0);
  assert.equal(view.getUint32(44, true), 8);

  const chosen = await create({}, { logicalBlockSize: 4096 });
  assert.equal(new DataView(chosen.config.buffer).getUint32(20, true), 4096);
  assert.equal(new DataView(chosen.config.buffer).getUint32(28, true), 256);
});

test('options out of range are refused with the nearest ones that are not', async () => {
  const direct = {
    requestAlignment: 4096,
    physicalBlockSize: 4096,
    optimalIoSize: 0,
    discardAlignment: 4096,
  };
  const cases: [Partial<BlockNode>, Partial<BlkDeviceOptions>, RegExp, RegExp?][] = [
    [{}, { queueCount: 0 }, /number of queues 0 is out of range: it must be from 1 to 1024/],
    [{}, { queueCount: 1025 }, /number of queues 1025/],
    [{}, { queueCount: 1.5 }, /number of queues 1\.5/],
    [{}, { queueSize: 2 }, /queue size 2 is out of range: it must be from 4 to 32768/],
    [{}, { queueSize: 65536 }, /queue size 65536/],
    [{}, { queueSize: 100 }, /queue size 100 is not a power of two/, /nearest ones are 64 and 128/],
    [{}, { logicalBlockSize: 256 }, /logical block size 256/],
    [{}, { logicalBlockSize: 3000 }, /3000 is not a power of two/, /2048 and 4096/],
    [{}, { logicalBlockSize: 8192 }, /logical block size 8192/],
    [{ limits: direct }, { logicalBlockSize: 512 }, /requests of 4096 bytes at least/, /cache\.direct/],
    [{}, { serial: 'x'.repeat(21) }, /serial 'x+' is too long/],
  ];
  for (const [changes, options, message, hint] of cases) {
    await assert.rejects(create(changes, options), (error: Error & { code?: string; hint?: string }) => {
      assert.equal(error.code, 'INVALID_ARGUMENT');
      assert.match(error.message, message);
      if (hint !== undefined) {
        assert.match(error.hint ?? '', hint);
      }
      return true;
    });
  }
});

test('a resize changes the capacity in the configuration and tells the transport', async () => {
  let size = 1 << 20;
  const device = await BlkDevice.create({
    node: Object.defineProperty(node(), 'size', { get: () => size }),
    hosts,
    logger: silentLogger,
    writable: true,
  });
  let changes = 0;
  device.setListener({ onConfigChange: () => changes++, onNeedsReset() {}, onMemoryMiss() {} });
  size = 1 << 21;
  device.resized();
  assert.equal(changes, 1);
  assert.equal(new DataView(device.config.buffer).getBigUint64(0, true), 4096n);
});
