import assert from 'node:assert/strict';
import { after, beforeEach, describe, it } from 'node:test';
import { GuestMemory, MemoryAccess } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE } from '../../src/virtqueue/layout.js';
import { SplitVirtqueue, type SplitVirtqueueConfig } from '../../src/virtqueue/split-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { QueuePair, type QueuePairPlan } from '../support/queue-pair.js';
import { RawRing } from '../support/raw-ring.js';
import { isVduseError } from '../support/vduse-error.js';

const payloadOffset = 48 << 20;
const payloadLength = 4 << 20;
const guest = new TestGuest(payloadOffset + payloadLength);
after(() => guest.close());
beforeEach(() => guest.bytes.fill(0, 0, 1 << 20));

/** Readable, writable and both, a MiB each and adjacent, from guest address 0; the host order is reversed. */
const mib = 1 << 20;
const payload = [
  guest.region({ start: 0, offset: payloadOffset + 2 * mib, length: mib, access: MemoryAccess.READ }),
  guest.region({ start: mib, offset: payloadOffset + mib, length: mib, access: MemoryAccess.WRITE }),
  guest.region({ start: 2 * mib, offset: payloadOffset, length: mib, access: MemoryAccess.READ_WRITE }),
];

function makePair(plan: QueuePairPlan): { pair: QueuePair; raw: RawRing } {
  const pair = new QueuePair(plan, guest, payload);
  return { pair, raw: new RawRing(guest, pair.parts, plan.size) };
}

describe('split virtqueue: configuration', () => {
  const { pair } = makePair({ size: 8 });
  const refused = (change: Partial<SplitVirtqueueConfig>) =>
    assert.throws(
      () => new SplitVirtqueue({ ...pair.deviceConfig, ...change }, pair.deviceMemory),
      isVduseError('PROTOCOL'),
    );

  it('refuses sizes that are no power of two up to 32768', () => {
    for (const size of [0, -8, 3, 6, 1.5, 65536, Number.NaN]) {
      refused({ size });
    }
  });

  it('refuses parts that are not aligned', () => {
    refused({ descriptorAddress: pair.deviceConfig.descriptorAddress + 8, size: 4 });
    refused({ driverAddress: pair.deviceConfig.driverAddress + 1, size: 4 });
    refused({ deviceAddress: pair.deviceConfig.deviceAddress + 2, size: 4 });
  });

  it('refuses parts that end outside of mapped memory', () => {
    refused({ size: 16 });
    refused({ descriptorAddress: 2 ** 50 });
    refused({ driverAddress: pair.deviceConfig.driverAddress + 2 });
    refused({ deviceAddress: pair.deviceConfig.deviceAddress + 4 });
  });

  it('refuses parts without the rights that the device needs', () => {
    refused({ descriptorAddress: mib });
    refused({ driverAddress: mib });
    refused({ deviceAddress: 0 });
    refused({ deviceAddress: mib });
  });

  it('refuses rings whose host memory is not aligned, as a vhost-user front-end may map it', () => {
    for (const misaligned of [1, 2]) {
      const memory = new GuestMemory([
        {
          start: 0,
          length: mib,
          hostAddress: guest.hostAddress + misaligned,
          access: MemoryAccess.READ_WRITE,
        },
      ]);
      const config = { ...pair.deviceConfig, descriptorAddress: 0, driverAddress: 4096, deviceAddress: 8192 };
      assert.throws(() => new SplitVirtqueue(config, memory), isVduseError('PROTOCOL'));
    }
  });

  it('refuses rings whose guest address is not aligned, wherever their memory is', () => {
    const hostAddress = guest.hostAddress;
    const memory = new GuestMemory([{ start: 1, length: mib, hostAddress, access: MemoryAccess.READ_WRITE }]);
    const config = { ...pair.deviceConfig, descriptorAddress: 17, driverAddress: 4097, deviceAddress: 8193 };
    assert.throws(() => new SplitVirtqueue(config, memory), isVduseError('PROTOCOL'));
  });

  it('finds aligned rings in a region that begins at an odd address', () => {
    const hostAddress = guest.hostAddress + 1;
    const memory = new GuestMemory([{ start: 1, length: mib, hostAddress, access: MemoryAccess.READ_WRITE }]);
    const config = { ...pair.deviceConfig, descriptorAddress: 16, driverAddress: 4098, deviceAddress: 8196 };
    assert.equal(new SplitVirtqueue(config, memory).popAvailable(new Uint16Array(4)), 0);
  });

  it('goes on from the indices that it is given', () => {
    const { pair: other, raw } = makePair({ size: 4, index: 65535 });
    raw.usedIndex = 65533;
    const queue = new SplitVirtqueue({ ...other.deviceConfig, availIndex: 65535 }, other.deviceMemory);
    raw.availableHead(65535, 2);
    raw.availableHead(0, 1);
    raw.availableIndex = 1;
    const heads = new Uint16Array(4);
    assert.equal(queue.popAvailable(heads), 2);
    assert.deepEqual([...heads.subarray(0, 2)], [2, 1]);
    assert.equal(queue.availIndex, 1);
    queue.addUsed(2, 0);
    queue.publishUsed();
    assert.equal(raw.usedIndex, 65534);
  });
});

describe('split virtqueue: chains that 2.7.5 forbids', () => {
  const cases: [string, number, (raw: RawRing, indirectAddress: number) => void][] = [
    [
      'a next beyond the table',
      -Errno.EINVAL,
      (raw) => {
        raw.descriptor(0, { address: 0, length: 1, flags: DESC_F_NEXT, next: 4 });
      },
    ],
    [
      'a loop',
      -Errno.EINVAL,
      (raw) => {
        raw.descriptor(0, { address: 0, length: 1, flags: DESC_F_NEXT, next: 1 });
        raw.descriptor(1, { address: 0, length: 1, flags: DESC_F_NEXT, next: 0 });
      },
    ],
    [
      'a loop of empty buffers',
      -Errno.EINVAL,
      (raw) => {
        raw.descriptor(0, { address: 0, length: 0, flags: DESC_F_NEXT, next: 0 });
      },
    ],
    [
      'a readable buffer after a writable one',
      -Errno.EINVAL,
      (raw) => {
        raw.descriptor(0, { address: mib, length: 1, flags: DESC_F_NEXT | DESC_F_WRITE, next: 1 });
        raw.descriptor(1, { address: 0, length: 1 });
      },
    ],
    ['a buffer in no region', -Errno.EFAULT, (raw) => raw.descriptor(0, { address: 3 * mib, length: 1 })],
    [
      'a buffer that ends one byte outside',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 3 * mib - 4, length: 5 }),
    ],
    [
      'a readable buffer in memory to write',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: mib, length: 1 }),
    ],
    [
      'a writable buffer in memory to read',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 0, length: 1, flags: DESC_F_WRITE }),
    ],
    [
      'a readable buffer that runs into memory to write',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: mib - 1, length: 2 }),
    ],
    [
      'a writable buffer of 4 GiB',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 2 * mib, length: 0xffff_ffff, flags: DESC_F_WRITE }),
    ],
    ['an address of 2^53', -Errno.EFAULT, (raw) => raw.descriptor(0, { address: 2n ** 53n, length: 1 })],
    [
      'an address of 2^64 - 1',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 2n ** 64n - 1n, length: 2 }),
    ],
    [
      'an empty indirect table',
      -Errno.EINVAL,
      (raw, address) => raw.descriptor(0, { address, length: 0, flags: DESC_F_INDIRECT }),
    ],
    [
      'an indirect table of one and a half entries',
      -Errno.EINVAL,
      (raw, address) => raw.descriptor(0, { address, length: 24, flags: DESC_F_INDIRECT }),
    ],
    [
      'an indirect table that goes on',
      -Errno.EINVAL,
      (raw, address) =>
        raw.descriptor(0, { address, length: 16, flags: DESC_F_INDIRECT | DESC_F_NEXT, next: 1 }),
    ],
    [
      'an indirect table in an indirect table',
      -Errno.EINVAL,
      (raw, address) => {
        raw.descriptor(0, { address, length: 16, flags: DESC_F_INDIRECT });
        raw.descriptor(0, { address, length: 16, flags: DESC_F_INDIRECT }, 'indirect');
      },
    ],
    [
      'an indirect table in no region',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 3 * mib, length: 16, flags: DESC_F_INDIRECT }),
    ],
    [
      'an indirect table that ends outside',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: 3 * mib - 16, length: 32, flags: DESC_F_INDIRECT }),
    ],
    [
      'an indirect table in memory to write',
      -Errno.EFAULT,
      (raw) => raw.descriptor(0, { address: mib, length: 16, flags: DESC_F_INDIRECT }),
    ],
    [
      'a next beyond the indirect table',
      -Errno.EINVAL,
      (raw, address) => {
        raw.descriptor(0, { address, length: 32, flags: DESC_F_INDIRECT });
        raw.descriptor(0, { address: 0, length: 1, flags: DESC_F_NEXT, next: 2 }, 'indirect');
      },
    ],
  ];
  for (const [name, expected, write] of cases) {
    it(`refuses ${name}`, () => {
      const { pair, raw } = makePair({ size: 4, tableEntries: 4 });
      write(raw, pair.parts.indirect.start);
      const chain = pair.device.createChain();
      assert.equal(pair.device.readChain(0, chain), expected);
    });
  }

  it('refuses indirect tables where they were not negotiated', () => {
    const { pair, raw } = makePair({ size: 4 });
    raw.descriptor(0, { address: 0, length: 16, flags: DESC_F_INDIRECT });
    assert.equal(pair.device.readChain(0, pair.device.createChain()), -Errno.EINVAL);
  });
});

describe('split virtqueue: chains that 2.7.5 allows', () => {
  it('splits a buffer where its memory goes on in another region', () => {
    const { pair, raw } = makePair({ size: 4 });
    raw.descriptor(0, { address: 2 * mib - 5, length: 12, flags: DESC_F_WRITE });
    const chain = pair.device.createChain();
    assert.equal(pair.device.readChain(0, chain), 0);
    assert.equal(chain.count, 2);
    assert.deepEqual([...chain.guestAddress.subarray(0, 2)], [2 * mib - 5, 2 * mib]);
    assert.deepEqual([...chain.length.subarray(0, 2)], [5, 7]);
    assert.equal(chain.hostAddress[0], payload[1].hostAddress + mib - 5);
    assert.equal(chain.hostAddress[1], payload[2].hostAddress);
    assert.deepEqual([chain.readableCount, chain.readableBytes, chain.writableBytes], [0, 0, 12]);
  });

  it('follows an indirect table behind ordinary descriptors', () => {
    const { pair, raw } = makePair({ size: 4, tableEntries: 4 });
    raw.descriptor(3, { address: 10, length: 1, flags: DESC_F_NEXT, next: 1 });
    raw.descriptor(1, { address: pair.parts.indirect.start, length: 64, flags: DESC_F_INDIRECT });
    raw.descriptor(0, { address: 20, length: 2, flags: DESC_F_NEXT, next: 3 }, 'indirect');
    raw.descriptor(3, { address: mib, length: 3, flags: DESC_F_WRITE }, 'indirect');
    const chain = pair.device.createChain();
    assert.equal(pair.device.readChain(3, chain), 0);
    assert.deepEqual([...chain.guestAddress.subarray(0, chain.count)], [10, 20, mib]);
    assert.deepEqual([chain.readableCount, chain.readableBytes, chain.writableBytes], [2, 3, 3]);
  });

  it('leaves out empty buffers, wherever they point', () => {
    const { pair, raw } = makePair({ size: 4 });
    raw.descriptor(0, { address: 2 ** 50, length: 0, flags: DESC_F_NEXT, next: 1 });
    raw.descriptor(1, { address: 0, length: 4 });
    const chain = pair.device.createChain();
    assert.equal(pair.device.readChain(0, chain), 0);
    assert.equal(chain.count, 1);
  });

  for (const [what, size, entries] of [
    ['of a small queue', 4, 1024],
    ['as long as a large queue', 2048, 2048],
  ] as const) {
    it(`takes the longest indirect chain ${what}, and not one more`, () => {
      const { pair, raw } = makePair({ size, tableEntries: 1025 });
      raw.descriptor(0, { address: pair.parts.indirect.start, length: 16 * entries, flags: DESC_F_INDIRECT });
      for (let n = 0; n < entries; n++) {
        const flags = n + 1 < entries ? DESC_F_NEXT : 0;
        raw.descriptor(n, { address: n, length: 1, flags, next: n + 1 }, 'indirect');
      }
      const chain = pair.device.createChain();
      assert.equal(pair.device.readChain(0, chain), 0);
      assert.equal(chain.count, entries);
      raw.descriptor(0, {
        address: pair.parts.indirect.start,
        length: 16 * (entries + 1),
        flags: DESC_F_INDIRECT,
      });
      raw.descriptor(entries - 1, { address: 0, length: 1, flags: DESC_F_NEXT, next: entries }, 'indirect');
      raw.descriptor(entries, { address: 0, length: 1 }, 'indirect');
      assert.equal(pair.device.readChain(0, chain), -Errno.EINVAL);
    });
  }

  it('takes a direct chain over the whole table of 32768', () => {
    const { pair } = makePair({ size: 32768 });
    const buffers = new ChainBuffers(32768);
    for (let n = 0; n < 32768; n++) {
      buffers.addReadable(n, 1);
    }
    const head = pair.driver.addAvailable(buffers, 0);
    const chain = pair.device.createChain();
    assert.equal(pair.device.readChain(head, chain), 0);
    assert.equal(chain.count, 32768);
  });
});

describe('split virtqueue: the available ring', () => {
  it('refuses an index that is further ahead than the queue is long, or behind', () => {
    for (const index of [5, 40000, 65535]) {
      const { pair, raw } = makePair({ size: 4 });
      raw.availableIndex = index;
      assert.equal(pair.device.popAvailable(new Uint16Array(8)), -Errno.EINVAL);
    }
  });

  it('refuses a head beyond the table', () => {
    const { pair, raw } = makePair({ size: 4 });
    raw.availableHead(0, 4);
    raw.availableIndex = 1;
    assert.equal(pair.device.popAvailable(new Uint16Array(8)), -Errno.EINVAL);
  });

  it('refuses a head that it still holds, and takes it again when it was used', () => {
    const { pair, raw } = makePair({ size: 4 });
    const heads = new Uint16Array(8);
    raw.availableHead(0, 2);
    raw.availableHead(1, 2);
    raw.availableIndex = 1;
    assert.equal(pair.device.popAvailable(heads), 1);
    pair.device.addUsed(2, 0);
    raw.availableIndex = 2;
    assert.equal(pair.device.popAvailable(heads), 1);
    raw.availableHead(2, 2);
    raw.availableIndex = 3;
    assert.equal(pair.device.popAvailable(heads), -Errno.EINVAL);
  });

  it('refuses a head that comes twice in one batch', () => {
    const { pair, raw } = makePair({ size: 4 });
    raw.availableHead(0, 1);
    raw.availableHead(1, 1);
    raw.availableIndex = 2;
    assert.equal(pair.device.popAvailable(new Uint16Array(8)), -Errno.EINVAL);
  });
});

describe('split virtqueue: notifications', () => {
  it('are asked for and not by the flags of 2.7.7 and 2.7.10', () => {
    const { pair } = makePair({ size: 4 });
    const buffers = new ChainBuffers(1);
    buffers.addReadable(0, 1);
    const heads = new Uint16Array(4);
    pair.device.disableNotifications();
    pair.driver.addAvailable(buffers, 1);
    assert.equal(pair.driver.publishAvailable(), false);
    assert.equal(pair.device.enableNotifications(), true);
    assert.equal(pair.device.popAvailable(heads), 1);
    assert.equal(pair.device.enableNotifications(), false);
    pair.driver.addAvailable(buffers, 1);
    assert.equal(pair.driver.publishAvailable(), true);
    pair.driver.disableNotifications();
    pair.device.addUsed(heads[0], 0);
    assert.equal(pair.device.stagedUsed, 1);
    assert.equal(pair.device.publishUsed(), false);
    assert.equal(pair.device.stagedUsed, 0);
    assert.equal(pair.driver.enableNotifications(), true);
  });

  it('come once for each time they are asked for under EVENT_IDX', () => {
    const { pair } = makePair({ size: 4, eventIdx: true, index: 65535 });
    const buffers = new ChainBuffers(1);
    buffers.addReadable(0, 1);
    const heads = new Uint16Array(4);
    const publish = () => {
      pair.driver.addAvailable(buffers, 1);
      return pair.driver.publishAvailable();
    };
    assert.deepEqual([publish(), publish(), publish()], [true, false, false]);
    assert.equal(pair.device.enableNotifications(), true);
    assert.equal(pair.device.popAvailable(heads), 3);
    assert.equal(pair.device.enableNotifications(), false);
    assert.deepEqual([publish()], [true]);
    const complete = (n: number) => {
      pair.device.addUsed(heads[n], 0);
      return pair.device.publishUsed();
    };
    assert.deepEqual([complete(0), complete(1), complete(2)], [true, false, false]);
  });

  it('are none for a batch of nothing', () => {
    const { pair } = makePair({ size: 4 });
    assert.equal(pair.device.publishUsed(), false);
    assert.equal(pair.driver.publishAvailable(), false);
  });
});
