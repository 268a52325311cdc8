import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { GuestMemory, MemoryAccess } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { DriverVirtqueue, UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import { SplitVirtqueue } from '../../src/virtqueue/split-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { QueuePair, type QueuePairPlan } from '../support/queue-pair.js';
import { RawRing } from '../support/raw-ring.js';
import { isVduseError } from '../support/vduse-error.js';

const guest = new TestGuest(4 << 20);
after(() => guest.close());
const payload = guest.region({ start: 0, offset: 3 << 20, length: 1 << 20, access: MemoryAccess.READ_WRITE });

function makePair(plan: QueuePairPlan): { pair: QueuePair; raw: RawRing } {
  const pair = new QueuePair(plan, guest, [payload]);
  return { pair, raw: new RawRing(guest, pair.parts, plan.size) };
}

function chainOf(readable: number, writable: number): ChainBuffers {
  const buffers = new ChainBuffers(readable + writable);
  for (let n = 0; n < readable; n++) {
    buffers.addReadable(n * 100, 10);
  }
  for (let n = 0; n < writable; n++) {
    buffers.addWritable(1000 + n * 100, 10);
  }
  return buffers;
}

describe('driver virtqueue: chains', () => {
  it('takes a descriptor for each buffer, and one where they fit in an indirect table', () => {
    const { pair } = makePair({ size: 8, tableEntries: 3 });
    assert.equal(pair.driver.addAvailable(chainOf(1, 2), 1), 0);
    assert.equal(pair.driver.freeDescriptors, 7);
    assert.equal(pair.driver.addAvailable(chainOf(2, 2), 2), 1);
    assert.equal(pair.driver.freeDescriptors, 3);
    assert.equal(pair.driver.addAvailable(chainOf(1, 0), 3), 5);
    assert.equal(pair.driver.freeDescriptors, 2);
    assert.equal(pair.driver.addAvailable(chainOf(2, 2), 4), -Errno.ENOSPC);
    assert.equal(pair.driver.inFlight, 0);
    pair.driver.publishAvailable();
    assert.equal(pair.driver.inFlight, 3);
  });

  it('refuses chains that can never be added', () => {
    const { pair } = makePair({ size: 4 });
    assert.equal(pair.driver.addAvailable(chainOf(0, 0), 1), -Errno.EINVAL);
    assert.equal(pair.driver.addAvailable(chainOf(3, 2), 1), -Errno.EINVAL);
    const long = new ChainBuffers(3);
    long.addReadable(0, 0xffff_ffff);
    long.addWritable(0, 1);
    assert.equal(pair.driver.addAvailable(long, 1), 0);
    long.addWritable(0, 1);
    assert.equal(pair.driver.addAvailable(long, 1), -Errno.EINVAL);
  });

  it('has no place for a readable buffer after a writable one', () => {
    assert.throws(() => chainOf(0, 1).addReadable(0, 1), /readable buffers come before/);
    assert.throws(() => chainOf(1, 1).addWritable(0, 1), /no more buffers/);
  });

  it('reuses descriptors in any order without losing one', () => {
    const { pair } = makePair({ size: 8 });
    const heads = new Uint16Array(8);
    const batch = new UsedBatch(8);
    for (let round = 0; round < 100; round++) {
      const lengths = [1 + (round % 3), 2, 3];
      const tokens = lengths.map((length, n) => {
        assert.ok(pair.driver.addAvailable(chainOf(length, 0), 1000 * round + n) >= 0);
        return 1000 * round + n;
      });
      pair.driver.publishAvailable();
      assert.equal(pair.device.popAvailable(heads), 3);
      const order = [round % 3, (round + 1) % 3, (round + 2) % 3];
      for (const n of order) {
        pair.device.addUsed(heads[n], 0);
      }
      pair.device.publishUsed();
      assert.equal(pair.driver.popUsed(batch), 3);
      assert.deepEqual(
        [...batch.token.subarray(0, 3)],
        order.map((n) => tokens[n]),
      );
      assert.equal(pair.driver.freeDescriptors, 8);
    }
  });

  it('keeps tokens of 32 bits and addresses of 53', () => {
    const { pair } = makePair({ size: 2 });
    const buffers = new ChainBuffers(1);
    buffers.addWritable(Number.MAX_SAFE_INTEGER - 1, 0);
    const head = pair.driver.addAvailable(buffers, 0xffff_fffe);
    const offset = pair.parts.table.hostAddress - guest.hostAddress + 16 * head;
    assert.equal(guest.view.getBigUint64(offset, true), BigInt(Number.MAX_SAFE_INTEGER - 1));
    pair.driver.publishAvailable();
    pair.device.popAvailable(new Uint16Array(1));
    pair.device.addUsed(head, 0);
    pair.device.publishUsed();
    const batch = new UsedBatch(1);
    assert.equal(pair.driver.popUsed(batch), 1);
    assert.equal(batch.token[0], 0xffff_fffe);
  });
});

describe('driver virtqueue: a device that is not to be believed', () => {
  const cases: [string, (raw: RawRing) => void][] = [
    [
      'an index further ahead than what is in flight',
      (raw) => {
        raw.usedIndex = 3;
      },
    ],
    [
      'an index that goes back',
      (raw) => {
        raw.usedIndex = 65535;
      },
    ],
    [
      'an id beyond the table',
      (raw) => {
        raw.usedElement(0, { id: 4, length: 0 });
        raw.usedIndex = 1;
      },
    ],
    [
      'an id of 32 bits',
      (raw) => {
        raw.usedElement(0, { id: 0x1_0000, length: 0 });
        raw.usedIndex = 1;
      },
    ],
    [
      'an id that is free',
      (raw) => {
        raw.usedElement(0, { id: 3, length: 0 });
        raw.usedIndex = 1;
      },
    ],
    [
      'an id inside of a chain',
      (raw) => {
        raw.usedElement(0, { id: 1, length: 0 });
        raw.usedIndex = 1;
      },
    ],
    [
      'more bytes than there was room for',
      (raw) => {
        raw.usedElement(0, { id: 0, length: 11 });
        raw.usedIndex = 1;
      },
    ],
    [
      'bytes written into a chain to read',
      (raw) => {
        raw.usedElement(0, { id: 2, length: 1 });
        raw.usedIndex = 1;
      },
    ],
  ];
  for (const [name, write] of cases) {
    it(`refuses ${name}, and goes on refusing`, () => {
      const { pair, raw } = makePair({ size: 4 });
      assert.equal(pair.driver.addAvailable(chainOf(1, 1), 1), 0);
      assert.equal(pair.driver.addAvailable(chainOf(1, 0), 2), 2);
      pair.driver.publishAvailable();
      write(raw);
      const batch = new UsedBatch(4);
      assert.equal(pair.driver.popUsed(batch), -Errno.EINVAL);
      assert.equal(pair.driver.popUsed(batch), -Errno.EINVAL);
      assert.equal(pair.driver.freeDescriptors, 1);
    });
  }

  it('hands out what came before the broken element', () => {
    const { pair, raw } = makePair({ size: 4 });
    pair.driver.addAvailable(chainOf(0, 1), 7);
    pair.driver.addAvailable(chainOf(0, 1), 8);
    pair.driver.publishAvailable();
    raw.usedElement(0, { id: 1, length: 10 });
    raw.usedElement(1, { id: 1, length: 10 });
    raw.usedIndex = 2;
    const batch = new UsedBatch(4);
    assert.equal(pair.driver.popUsed(batch), 1);
    assert.deepEqual([batch.token[0], batch.writtenLength[0]], [8, 10]);
    assert.equal(pair.driver.popUsed(batch), -Errno.EINVAL);
  });

  it('does not follow links that the device changed', () => {
    const { pair, raw } = makePair({ size: 4 });
    pair.driver.addAvailable(chainOf(2, 1), 1);
    pair.driver.publishAvailable();
    raw.descriptor(0, { address: 0, length: 0, flags: 1, next: 3 });
    raw.descriptor(1, { address: 0, length: 0, flags: 1, next: 1 });
    pair.device.popAvailable(new Uint16Array(4));
    pair.device.addUsed(0, 0);
    pair.device.publishUsed();
    assert.equal(pair.driver.popUsed(new UsedBatch(4)), 1);
    assert.equal(pair.driver.freeDescriptors, 4);
    const heads = [0, 1, 2, 3].map((n) => pair.driver.addAvailable(chainOf(1, 0), n));
    assert.deepEqual(heads.toSorted(), [0, 1, 2, 3]);
  });
});

describe('driver virtqueue: configuration and reset', () => {
  it('begins anew after a reset, at any index', () => {
    for (const eventIdx of [false, true]) {
      const { pair } = makePair({ size: 4, eventIdx });
      pair.driver.addAvailable(chainOf(2, 1), 1);
      pair.driver.publishAvailable();
      pair.driver.disableNotifications();
      pair.device.disableNotifications();
      pair.driver.reset(65535);
      assert.equal(pair.driver.freeDescriptors, 4);
      assert.equal(pair.driver.inFlight, 0);
      assert.equal(pair.driver.popUsed(new UsedBatch(4)), 0);
      assert.equal(pair.driver.publishAvailable(), false);
      // A device that starts now finds notifications asked for, and asks for them itself.
      const device = new SplitVirtqueue({ ...pair.deviceConfig, availIndex: 65535 }, pair.deviceMemory);
      const head = pair.driver.addAvailable(chainOf(1, 1), 2);
      assert.equal(pair.driver.publishAvailable(), true);
      assert.equal(device.popAvailable(new Uint16Array(4)), 1);
      device.addUsed(head, 10);
      assert.equal(device.publishUsed(), true);
      const batch = new UsedBatch(4);
      assert.equal(pair.driver.popUsed(batch), 1);
      assert.deepEqual([batch.token[0], batch.writtenLength[0]], [2, 10]);
    }
  });

  it('refuses memory that it may not write, and tables outside of memory', () => {
    const { pair } = makePair({ size: 4, tableEntries: 2 });
    const refused = (entries: number, memory: GuestMemory) =>
      assert.throws(
        () =>
          new DriverVirtqueue(
            { ...pair.deviceConfig, indirectTables: { address: pair.parts.indirect.start, entries } },
            memory,
          ),
        isVduseError('PROTOCOL'),
      );
    const { table, avail, used, indirect } = pair.parts;
    const writable = [table, avail, used, indirect].map((part) => ({
      ...part,
      access: MemoryAccess.READ_WRITE,
    }));
    refused(2, pair.deviceMemory);
    refused(3, new GuestMemory(writable));
    refused(0, new GuestMemory(writable));
    assert.throws(() => new DriverVirtqueue({ ...pair.deviceConfig, size: 3 }, new GuestMemory(writable)));
  });
});
