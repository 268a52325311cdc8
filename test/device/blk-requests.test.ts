/** What each request type does, by the sections of virtio 1.3, 5.2, on real queues. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BLK_F, BLK_S, BLK_T } from '../../src/device/blk/blk-protocol.js';
import { type BlkSetup, type BlkSetupOptions, localNode, memoryNode, startBlk } from '../support/blk.js';
import { encodeHeader, encodeRanges } from '../support/blk-client.js';
import { untouched } from '../support/front-end-memory.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk, type MemoryDiskOptions } from '../support/memory-disk.js';

const sectors = 2048;
const size = sectors * 512;
const pool = makeTestPool({ size: 2 });

type Extra = Pick<BlkSetupOptions, 'device' | 'frontEnd'>;

async function withMemory(use: (setup: BlkSetup) => Promise<void>, extra: Extra = {}): Promise<void> {
  const setup = await startBlk({ node: await memoryNode(size), hosts: pool, ...extra });
  try {
    await use(setup);
  } finally {
    await setup.close();
  }
}

async function withDisk(
  use: (setup: BlkSetup, disk: MemoryDisk) => Promise<void>,
  options: Partial<MemoryDiskOptions> & { readOnly?: boolean } & Extra = {},
): Promise<void> {
  const { readOnly, device, frontEnd, ...diskOptions } = options;
  const disk = new MemoryDisk({ size, ...diskOptions });
  const setup = await startBlk({
    node: localNode(disk, readOnly),
    hosts: pool,
    ...(device === undefined ? {} : { device }),
    ...(frontEnd === undefined ? {} : { frontEnd }),
  });
  try {
    await use(setup, disk);
  } finally {
    await setup.close();
  }
}

const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, at) => (at * 7 + 1) & 0xff);

describe('5.2.6 IN and OUT', () => {
  test('what was written is read, at its place and nowhere else', () =>
    withMemory(async ({ client }) => {
      const data = pattern(8192);
      const written = await client.write(4096, data);
      assert.deepEqual([written.status, written.written], [BLK_S.OK, 1]);
      const read = await client.read(0, 16384);
      assert.deepEqual([read.status, read.written], [BLK_S.OK, 16385]);
      const expected = new Uint8Array(16384);
      expected.set(data, 4096);
      assert.ok(Buffer.from(read.data).equals(expected));
    }));

  test('the last sector is in range, what goes one sector beyond is not, also where offset + length wraps', () =>
    withMemory(async ({ client, device }) => {
      assert.equal((await client.write(size - 512, pattern(512))).status, BLK_S.OK);
      assert.equal((await client.read(size - 512, 512)).status, BLK_S.OK);
      const bad: [bigint, number][] = [
        [BigInt(sectors), 512],
        [BigInt(sectors) - 1n, 1024],
        [1n << 32n, 512],
        [(1n << 44n) - 1n, 512],
        [(1n << 55n) - 1n, 512],
        [(1n << 63n) - 1n, 512],
        [(1n << 64n) - 1n, 512],
      ];
      for (const [sector, length] of bad) {
        const read = await client.request({ type: BLK_T.IN, sector, in: length });
        assert.equal(read.status, BLK_S.IOERR, `IN ${sector}`);
        assert.ok(read.data.every((byte) => byte === untouched));
        const write = await client.request({ type: BLK_T.OUT, sector, out: new Uint8Array(length) });
        assert.equal(write.status, BLK_S.IOERR, `OUT ${sector}`);
      }
      assert.equal(device.statistics.errors, 2 * bad.length);
      assert.ok(Buffer.from((await client.read(size - 512, 512)).data).equals(pattern(512)));
    }));

  test('a length that is no multiple of 512 is an error and transfers nothing', () =>
    withDisk(async ({ client }, disk) => {
      for (const length of [1, 511, 513, 1000]) {
        assert.equal((await client.read(0, length)).status, BLK_S.IOERR);
        assert.equal((await client.write(0, new Uint8Array(length))).status, BLK_S.IOERR);
      }
      assert.deepEqual(disk.calls, []);
    }));

  test('a request without data is served without asking the block driver', () =>
    withDisk(async ({ client }, disk) => {
      assert.equal((await client.read(0, 0)).status, BLK_S.OK);
      assert.equal((await client.write(0, new Uint8Array(0))).status, BLK_S.OK);
      assert.equal((await client.read(size, 0)).status, BLK_S.OK);
      assert.equal((await client.read(size + 512, 0)).status, BLK_S.IOERR);
      assert.deepEqual(disk.calls, []);
    }));

  test('requests that the block size of the device does not divide are refused where the node wants it', () =>
    withDisk(
      async ({ client }, disk) => {
        assert.equal((await client.read(512, 4096)).status, BLK_S.IOERR);
        assert.equal((await client.read(4096, 512)).status, BLK_S.IOERR);
        assert.equal((await client.read(4096, 4096)).status, BLK_S.OK);
        assert.equal((await client.discard([{ sector: 1, sectors: 8 }])).status, BLK_S.IOERR);
        assert.equal(disk.count('discard'), 0);
      },
      { blockSize: 4096 },
    ));

  test('5.2.6.2: a read-only device refuses to write and changes nothing', () =>
    withDisk(
      async ({ client, device }, disk) => {
        assert.equal((device.deviceFeatures >> BigInt(BLK_F.RO)) & 1n, 1n);
        assert.equal((await client.write(0, pattern(512))).status, BLK_S.IOERR);
        assert.equal((await client.discard([{ sector: 0, sectors: 1 }])).status, BLK_S.UNSUPP);
        assert.equal((await client.writeZeroes([{ sector: 0, sectors: 1 }])).status, BLK_S.UNSUPP);
        assert.deepEqual(disk.calls, []);
        assert.equal((await client.read(0, 512)).status, BLK_S.OK);
        assert.equal((await client.flush()).status, BLK_S.OK);
      },
      { readOnly: true },
    ));

  test('more segments than preadv takes are an error, as many as it takes are served', () =>
    withMemory(
      async ({ frontEnd }) => {
        const readable = [encodeHeader(BLK_T.IN, 0)];
        const queue = frontEnd.queues[0];
        const most = await queue.exchange({ readable, writable: [...new Array(1022).fill(512), 1] });
        assert.equal(most.data.at(-1), BLK_S.OK);
        assert.ok(most.data.subarray(0, -1).every((byte) => byte === 0));
        const single = await queue.exchange({ readable, writable: [...new Array(1536).fill(256), 1] });
        assert.equal(single.data.at(-1), BLK_S.IOERR);
        assert.ok(single.data.subarray(0, -1).every((byte) => byte === untouched));
        const out = [encodeHeader(BLK_T.OUT, 0), ...new Array(1536).fill(new Uint8Array(256))];
        assert.equal((await queue.exchange({ readable: out, writable: [1] })).data[0], BLK_S.IOERR);
      },
      { device: { queueSize: 2048 } },
    ));
});

describe('5.2.6 FLUSH', () => {
  test('reaches the block driver once; without the feature it is still answered', async () => {
    await withDisk(async ({ client }, disk) => {
      assert.deepEqual(await client.flush(), { status: BLK_S.OK, data: Buffer.alloc(0), written: 1 });
      assert.equal(disk.count('flush'), 1);
    });
    await withDisk(async ({ client }) => assert.equal((await client.flush()).status, BLK_S.OK), {
      without: ['flush'],
    });
  });

  test('5.2.6.2: a driver that did not accept FLUSH has every write durable, one that did has none', async () => {
    await withDisk(async ({ client }, disk) => {
      await client.write(0, pattern(512));
      await client.writeZeroes([{ sector: 0, sectors: 1 }]);
      assert.equal(disk.count('flush'), 0);
    });
    await withDisk(
      async ({ client }, disk) => {
        await client.write(0, pattern(512));
        assert.deepEqual(
          disk.calls.map(({ call }) => call),
          ['write', 'flush'],
        );
        await client.writeZeroes([{ sector: 0, sectors: 1 }]);
        assert.deepEqual(
          disk.calls.slice(2).map(({ call }) => call),
          ['writeZeroes', 'flush'],
        );
        await client.read(0, 512);
        assert.equal(disk.count('flush'), 2);
      },
      { frontEnd: { without: [BLK_F.FLUSH] } },
    );
  });
});

describe('5.2.6 GET_ID', () => {
  const serial = 'ABCDEFGHIJKLMNOPQRST';

  const idOf = async (text: string, room: number): Promise<{ status: number; data: Uint8Array }> => {
    let reply: { status: number; data: Uint8Array } | undefined;
    await withMemory(
      async ({ client }) => {
        reply = await client.request({ type: BLK_T.GET_ID, in: room });
      },
      { device: { serial: text } },
    );
    assert.ok(reply !== undefined);
    return reply;
  };

  test('a short string is padded with NULs', async () => {
    const { status, data } = await idOf('disk-1', 20);
    assert.equal(status, BLK_S.OK);
    assert.equal(Buffer.from(data).toString('latin1'), `disk-1${'\0'.repeat(14)}`);
  });

  test('one of 20 bytes has no NUL, also where the buffer is longer', async () => {
    assert.equal(Buffer.from((await idOf(serial, 20)).data).toString('latin1'), serial);
    const { data } = await idOf(serial, 24);
    assert.equal(Buffer.from(data.subarray(0, 20)).toString('latin1'), serial);
    assert.ok(data.subarray(20).every((byte) => byte === untouched));
  });

  test('a buffer that is too small gets as much as it holds', async () => {
    const { status, data } = await idOf(serial, 7);
    assert.equal(status, BLK_S.OK);
    assert.equal(Buffer.from(data).toString('latin1'), 'ABCDEFG');
    assert.equal((await idOf(serial, 0)).status, BLK_S.OK);
  });

  test('a serial longer than 20 bytes is refused, counted in bytes', async () => {
    const node = await memoryNode(size);
    await assert.rejects(startBlk({ node, hosts: pool, device: { serial: 'ä'.repeat(11) } }), {
      code: 'INVALID_ARGUMENT',
    });
    await node.close();
  });
});

describe('5.2.6 DISCARD and WRITE_ZEROES', () => {
  test('each segment is done, in order, empty ones are skipped', () =>
    withDisk(async ({ client, device }, disk) => {
      const ranges = [
        { sector: 0, sectors: 0 },
        { sector: 8, sectors: 16 },
        { sector: 100, sectors: 0 },
        { sector: 200, sectors: 1 },
        { sector: 0, sectors: 0 },
      ];
      assert.equal((await client.discard(ranges)).status, BLK_S.OK);
      assert.equal((await client.writeZeroes(ranges)).status, BLK_S.OK);
      const expected = [
        { offset: 8 * 512, length: 16 * 512 },
        { offset: 200 * 512, length: 512 },
      ];
      for (const call of ['discard', 'writeZeroes'] as const) {
        const made = disk.calls.filter((one) => one.call === call);
        assert.deepEqual(
          made.map(({ offset, length }) => ({ offset, length })),
          expected,
        );
      }
      assert.equal(device.statistics.unmaps, 2);
    }));

  test('empty segments alone are served without the block driver', () =>
    withDisk(async ({ client }, disk) => {
      for (const count of [1, 3, 32]) {
        const ranges = new Array(count).fill({ sector: 5, sectors: 0 });
        assert.equal((await client.discard(ranges)).status, BLK_S.OK);
        assert.equal((await client.writeZeroes(ranges)).status, BLK_S.OK);
      }
      assert.deepEqual(disk.calls, []);
    }));

  test('32 segments are served, 33, none and parts of one are not', () =>
    withDisk(async ({ client }, disk) => {
      const ranges = (count: number): { sector: number; sectors: number }[] =>
        Array.from({ length: count }, (_, n) => ({ sector: n * 2, sectors: 1 }));
      assert.equal((await client.discard(ranges(32))).status, BLK_S.OK);
      assert.equal(disk.count('discard'), 32);
      for (const type of [BLK_T.DISCARD, BLK_T.WRITE_ZEROES]) {
        for (const out of [
          encodeRanges(ranges(33)),
          new Uint8Array(0),
          encodeRanges(ranges(2)).subarray(0, 31),
        ]) {
          assert.equal((await client.request({ type, out })).status, BLK_S.IOERR);
        }
      }
      assert.equal(disk.calls.length, 32);
    }));

  test('one bad segment among good ones: nothing is done', () =>
    withDisk(async ({ client }, disk) => {
      const good = { sector: 0, sectors: 8 };
      for (const bad of [
        { sector: sectors, sectors: 1 },
        { sector: sectors - 1, sectors: 2 },
        { sector: (1n << 64n) - 1n, sectors: 1 },
        { sector: (1n << 55n) - 8n, sectors: 16 },
        { sector: 0, sectors: 0xffff_ffff },
      ]) {
        assert.equal((await client.discard([good, bad])).status, BLK_S.IOERR);
        assert.equal((await client.writeZeroes([good, bad, good])).status, BLK_S.IOERR);
      }
      assert.deepEqual(disk.calls, []);
    }));

  test('5.2.6.2: unknown flags, and unmap with a discard, are UNSUPP; unmap with write-zeroes is not', () =>
    withDisk(async ({ client }, disk) => {
      const range = { sector: 0, sectors: 8 };
      for (const flags of [2, 3, 0x8000_0000]) {
        assert.equal((await client.discard([range, { ...range, flags }])).status, BLK_S.UNSUPP);
        assert.equal((await client.writeZeroes([range, { ...range, flags }])).status, BLK_S.UNSUPP);
      }
      assert.equal((await client.discard([{ ...range, flags: 1 }])).status, BLK_S.UNSUPP);
      assert.deepEqual(disk.calls, []);
      assert.equal((await client.writeZeroes([{ ...range, flags: 1 }])).status, BLK_S.OK);
    }));

  test('a segment longer than max_discard_sectors is an error although the disk is longer', async () => {
    const node = await memoryNode(4 * 2 ** 30);
    const setup = await startBlk({ node, hosts: pool });
    const most = new DataView(setup.device.config.buffer).getUint32(36, true);
    assert.equal((await setup.client.discard([{ sector: 0, sectors: most }])).status, BLK_S.OK);
    assert.equal((await setup.client.discard([{ sector: 0, sectors: most + 8 }])).status, BLK_S.IOERR);
    await setup.close();
  });

  test('without the feature they are unknown requests', () =>
    withDisk(
      async ({ client }, disk) => {
        assert.equal((await client.discard([{ sector: 0, sectors: 8 }])).status, BLK_S.UNSUPP);
        assert.equal((await client.writeZeroes([{ sector: 0, sectors: 8 }])).status, BLK_S.UNSUPP);
        assert.deepEqual(disk.calls, []);
      },
      { frontEnd: { without: [BLK_F.DISCARD, BLK_F.WRITE_ZEROES] } },
    ));

  test('the error of a segment ends the request', () =>
    withDisk(async ({ client }, disk) => {
      disk.failure = new Error('no');
      const range = { sector: 0, sectors: 8 };
      assert.equal((await client.discard([range, range])).status, BLK_S.IOERR);
      assert.equal(disk.count('discard'), 1);
    }));
});

test('5.2.6.2: types that nobody knows are UNSUPP', () =>
  withDisk(async ({ client }, disk) => {
    // 2, 3, 5: legacy SCSI and barriers; 14: secure erase; 15 on: zones.
    for (const type of [2, 3, 5, 9, 12, 14, 15, 16, 0x8000_0000, 0xffff_ffff]) {
      assert.equal((await client.request({ type, in: 512 })).status, BLK_S.UNSUPP, `type ${type}`);
      assert.equal((await client.request({ type, out: new Uint8Array(512) })).status, BLK_S.UNSUPP);
    }
    assert.deepEqual(disk.calls, []);
  }));

test('errors of a block driver are I/O errors, and the device goes on', () =>
  withDisk(async ({ client, device }, disk) => {
    disk.failure = new Error('broken');
    assert.equal((await client.read(0, 512)).status, BLK_S.IOERR);
    assert.equal((await client.write(0, pattern(512))).status, BLK_S.IOERR);
    assert.equal((await client.flush()).status, BLK_S.IOERR);
    disk.failure = Object.assign(new Error('EOPNOTSUPP'), { errno: -95 });
    assert.equal((await client.flush()).status, BLK_S.UNSUPP);
    disk.failure = undefined;
    assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    assert.equal(device.statistics.errors, 4);
  }));

test('a block driver that gives its buffer away fails the read, nothing else', () =>
  withDisk(async ({ client }, disk) => {
    const read = disk.read.bind(disk);
    disk.read = async (offset, buffer) => {
      await read(offset, buffer);
      structuredClone(buffer, { transfer: [buffer.buffer as ArrayBuffer] });
    };
    const { status, data } = await client.read(0, 4096);
    assert.equal(status, BLK_S.IOERR);
    assert.ok(data.every((byte) => byte === untouched));
    disk.read = read;
    assert.equal((await client.read(0, 4096)).status, BLK_S.OK);
  }));

test('statistics count requests and the bytes of those that succeeded', () =>
  withMemory(async ({ client, device }) => {
    await client.write(0, pattern(4096));
    await client.read(0, 1024);
    await client.read(size, 512);
    await client.flush();
    await client.discard([{ sector: 0, sectors: 8 }]);
    const { interrupts, ...rest } = device.statistics;
    assert.deepEqual(rest, {
      reads: 1,
      writes: 1,
      flushes: 1,
      unmaps: 1,
      readBytes: 1024,
      writeBytes: 4096,
      errors: 1,
      inFlight: 0,
    });
    assert.ok(interrupts >= 1 && interrupts <= 5);
  }));

describe('chains that are no requests', () => {
  for (const [what, readable, writable] of [
    ['no header', [new Uint8Array(15)], [1]],
    ['no status', [encodeHeader(BLK_T.FLUSH, 0)], []],
    ['nothing to read', [], [512, 1]],
  ] as const) {
    test(`${what}: the queue stops and the device says so`, async () => {
      const node = await memoryNode(size);
      const setup = await startBlk({ node, hosts: pool });
      const reason = new Promise<string>((resolve) => {
        setup.device.setListener({
          onConfigChange() {},
          onMemoryMiss() {},
          onNeedsReset: resolve,
        });
      });
      void setup.frontEnd.queues[0].exchange({ readable, writable });
      assert.match(await reason, /^queue 0: .*no room for its header or its status/);
      await setup.close();
    });
  }
});
