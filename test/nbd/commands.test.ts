import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { makeTempDir } from '../support/temp-dir.js';
import { ErrnoError, MemoryExport, type MemoryExportOptions } from './memory-export.js';
import { startServer } from './nbd-test-server.js';
import type { Outcome, RawRequest } from './raw-client.js';

const READ = 0;
const WRITE = 1;
const FLUSH = 3;
const TRIM = 4;
const CACHE = 5;
const WRITE_ZEROES = 6;
const BLOCK_STATUS = 7;
const FUA = 1;
const NO_HOLE = 2;
const DF = 4;
const REQ_ONE = 8;
const FAST_ZERO = 16;

const EPERM = 1;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;
const ENOTSUP = 95;

const size = 1 << 20;

/** Bytes that differ from their neighbours, and from those of another seed. */
function pattern(length: number, seed = 1): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, n) => (n * 7 + seed * 31 + (n >> 8)) & 0xff));
}

describe('NBD commands', () => {
  const dir = makeTempDir();

  for (const structured of [false, true]) {
    const kind = structured ? 'structured' : 'simple';
    for (const isAsync of [false, true]) {
      test(`${kind} replies, ${isAsync ? 'promises' : 'values'}: what is written is read`, async (t) => {
        const target = new MemoryExport({ size, isAsync });
        const { open } = await startServer(t, dir, { target });
        const client = await open({ structured });
        for (const length of [1, 511, 4096, 16384, 16385, 65536, 300_000]) {
          const data = pattern(length, length);
          assert.equal((await client.call({ type: WRITE, offset: 333, data })).errno, 0);
          assert.deepEqual(target.bytes.subarray(333, 333 + length), new Uint8Array(data));
          const outcome = await client.call({ type: READ, offset: 333, length });
          assert.ok(outcome.data.equals(data), `${length} bytes`);
          assert.equal(outcome.chunks.length, structured ? 1 : 0);
        }
        target.assertBalanced();
      });
    }
  }

  test('a cookie is sent back as it came, and need not be unique', async (t) => {
    const target = new MemoryExport({ size, isAsync: true });
    const { open } = await startServer(t, dir, { target });
    const client = await open({ structured: true });
    const cookie = 0xffeeddccbbaa9988n;
    assert.equal((await client.call({ type: READ, length: 512, cookie })).cookie, cookie);
    const data = pattern(512);
    client.request({ type: WRITE, data, cookie });
    client.request({ type: READ, offset: 4096, length: 512, cookie });
    // Whichever comes first: the raw client knows one request by that cookie, so it only looks at bytes.
    const bytes = await client.read(16 + 28 + 512);
    assert.equal(bytes.toString('hex').split(cookie.toString(16)).length, 3);
  });

  test('replies come as requests complete, not as they were sent', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    let openGate: () => void = () => undefined;
    target.gate = new Promise((report) => {
      openGate = report;
    });
    const slow = client.request({ type: READ, length: 512 });
    await untilCalls(target, 1);
    target.gate = undefined;
    const fast = await client.call({ type: READ, offset: 512, length: 512 });
    assert.notEqual(fast.cookie, slow);
    openGate();
    assert.equal((await client.outcome()).cookie, slow);
  });

  test('reads across holes: chunks for data and holes, or one whole', async (t) => {
    const target = new MemoryExport({ size, holeBytes: 65536 });
    const { open } = await startServer(t, dir, { target });
    const data = pattern(1000);
    const simple = await open();
    const structured = await open({ structured: true });
    assert.equal((await simple.call({ type: WRITE, offset: 65536, data })).errno, 0);
    const expected = Buffer.alloc(300_000);
    data.copy(expected, 65536 - 1000);
    const request = { type: READ, offset: 1000, length: 300_000 };
    assert.ok((await simple.call(request)).data.equals(expected));
    const pieces = await structured.call(request);
    assert.ok(pieces.data.equals(expected));
    assert.deepEqual(
      pieces.chunks.map((chunk) => chunk.type),
      [2, 1, 2],
    );
    const whole = await structured.call({ ...request, flags: DF });
    assert.ok(whole.data.equals(expected));
    assert.deepEqual(
      whole.chunks.map((chunk) => chunk.type),
      [1],
    );
    target.assertBalanced();
  });

  test('flush, trim, cache and write zeroes reach the export with their options', async (t) => {
    const target = new MemoryExport({ size, holeBytes: 4096 });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    const ok = async (request: RawRequest): Promise<void> =>
      assert.equal((await client.call(request)).errno, 0, JSON.stringify(request));
    await ok({ type: WRITE, offset: 0, data: pattern(16384), flags: FUA });
    await ok({ type: FLUSH });
    await ok({ type: TRIM, offset: 4096, length: 4096 });
    await ok({ type: TRIM, offset: 4096, length: 4096, flags: FUA });
    await ok({ type: CACHE, offset: 0, length: 8192 });
    await ok({ type: WRITE_ZEROES, offset: 8192, length: 4096 });
    await ok({ type: WRITE_ZEROES, offset: 8192, length: 4096, flags: NO_HOLE | FUA });
    await ok({ type: WRITE_ZEROES, offset: 8192, length: 4096, flags: FAST_ZERO });
    assert.deepEqual(target.calls, [
      { call: 'prepareWrite', offset: 0, length: 16384, options: { fua: true } },
      { call: 'flush', offset: 0, length: 0 },
      { call: 'trim', offset: 4096, length: 4096, options: { fua: false } },
      { call: 'trim', offset: 4096, length: 4096, options: { fua: true } },
      { call: 'cache', offset: 0, length: 8192 },
      ...[
        { fua: false, mayUnmap: true, fastZero: false },
        { fua: true, mayUnmap: false, fastZero: false },
        { fua: false, mayUnmap: true, fastZero: true },
      ].map((options) => ({ call: 'writeZeroes', offset: 8192, length: 4096, options })),
    ]);
    assert.ok(
      (await client.call({ type: READ, offset: 4096, length: 8192 })).data.every((byte) => byte === 0),
    );
  });

  test('FUA is a write and a flush where the export has no FUA of its own', async (t) => {
    const target = new MemoryExport({ size, fua: false, isAsync: true });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    const requests: RawRequest[] = [
      { type: WRITE, data: pattern(512), flags: FUA },
      { type: TRIM, length: 512, flags: FUA },
      { type: WRITE_ZEROES, length: 512, flags: FUA },
      { type: READ, length: 512, flags: FUA },
      { type: WRITE, data: pattern(512) },
    ];
    for (const request of requests) {
      assert.equal((await client.call(request)).errno, 0);
    }
    assert.deepEqual(
      target.calls.map(({ call }) => call),
      ['prepareWrite', 'flush', 'trim', 'flush', 'writeZeroes', 'flush', 'read', 'prepareWrite'],
    );
    assert.ok(target.calls.every((call) => call.options?.fua !== true));
  });

  test('a failing flush fails the FUA write', async (t) => {
    const target = new MemoryExport({ size, fua: false });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    const flush = t.mock.method(target as Required<MemoryExport>, 'flush', () =>
      Promise.reject(new ErrnoError(ENOSPC)),
    );
    assert.equal((await client.call({ type: WRITE, data: pattern(512), flags: FUA })).errno, ENOSPC);
    assert.equal(flush.mock.callCount(), 1);
    assert.equal((await client.call({ type: WRITE, data: pattern(512) })).errno, 0);
  });

  test('block status joins equal extents, and is cut to one on request', async (t) => {
    const target = new MemoryExport({ size, holeBytes: 4096 });
    const { open } = await startServer(t, dir, { target });
    const client = await open({ structured: true, context: true });
    await client.call({ type: WRITE, offset: 8192, data: pattern(4096) });
    const range = { type: BLOCK_STATUS, offset: 0, length: 20480 };
    assert.deepEqual((await client.call(range)).extents, [
      { length: 8192, flags: 3 },
      { length: 4096, flags: 0 },
      { length: 8192, flags: 3 },
    ]);
    assert.deepEqual((await client.call({ ...range, flags: REQ_ONE })).extents, [{ length: 8192, flags: 3 }]);
    const { chunks } = await client.call(range);
    assert.equal(chunks[0].payload.readUInt32BE(), 1, 'the context that was selected');
  });

  test('block status of an export that cannot tell is data', async (t) => {
    const target = new MemoryExport({ size, without: ['blockStatus'] });
    const { open } = await startServer(t, dir, { target });
    const client = await open({ structured: true, context: true });
    const { extents } = await client.call({ type: BLOCK_STATUS, offset: 512, length: 9999 });
    assert.deepEqual(extents, [{ length: 9999, flags: 0 }]);
  });

  test('length 0 succeeds without the export', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    for (const structured of [false, true]) {
      const client = await open({ structured });
      for (const type of [READ, WRITE, TRIM, CACHE, WRITE_ZEROES]) {
        assert.equal((await client.call({ type, offset: size, length: 0 })).errno, 0);
      }
    }
    assert.equal(target.calls.length, 0);
  });

  const refused: [string, Partial<MemoryExportOptions>, RawRequest, number, RegExp?][] = [
    ['a read beyond the end', {}, { type: READ, offset: size - 511, length: 512 }, EINVAL, /ends at 1048576/],
    ['a read of 4 GiB', {}, { type: READ, length: 0xffff_ffff }, EINVAL],
    ['a read at 2^64 - 1', {}, { type: READ, offset: 0xffff_ffff_ffff_ffffn, length: 1 }, EINVAL],
    ['a read at 2^53', {}, { type: READ, offset: 2n ** 53n, length: 0 }, EINVAL],
    ['a write beyond the end', {}, { type: WRITE, offset: size, data: pattern(1) }, ENOSPC],
    ['a trim beyond the end', {}, { type: TRIM, offset: size, length: 1 }, EINVAL],
    ['zeroes beyond the end', {}, { type: WRITE_ZEROES, length: size + 1 }, ENOSPC],
    ['block status beyond the end', {}, { type: BLOCK_STATUS, length: size + 1 }, EINVAL],
    ['block status of nothing', {}, { type: BLOCK_STATUS, length: 0 }, EINVAL, /0 bytes/],
    ['an unknown command', {}, { type: 99 }, EINVAL, /command 99/],
    ['resize', {}, { type: 8, length: 4096 }, EINVAL],
    ['an unknown flag', {}, { type: READ, length: 1, flags: 0x8000 }, EINVAL, /0x8000/],
    ['DF on a write', {}, { type: WRITE, data: pattern(1), flags: DF }, EINVAL],
    ['NO_HOLE on a trim', {}, { type: TRIM, length: 1, flags: NO_HOLE }, EINVAL],
    ['REQ_ONE on a read', {}, { type: READ, length: 1, flags: REQ_ONE }, EINVAL],
    ['a flush with a length', {}, { type: FLUSH, length: 1 }, EINVAL],
    ['a flush with an offset', {}, { type: FLUSH, offset: 1 }, EINVAL],
    ['a flush that was not offered', { without: ['flush'] }, { type: FLUSH }, EINVAL],
    [
      'FUA that was not offered',
      { fua: false, without: ['flush'] },
      { type: WRITE, data: pattern(1), flags: FUA },
      EINVAL,
    ],
    ['a trim that was not offered', { without: ['trim'] }, { type: TRIM, length: 1 }, EINVAL],
    ['a cache that was not offered', { without: ['cache'] }, { type: CACHE, length: 1 }, EINVAL],
    ['zeroes that were not offered', { without: ['writeZeroes'] }, { type: WRITE_ZEROES, length: 1 }, EINVAL],
    [
      'FAST_ZERO that was not offered',
      { fastZero: false },
      { type: WRITE_ZEROES, length: 1, flags: FAST_ZERO },
      EINVAL,
    ],
    [
      'a write to a read-only export',
      { without: ['prepareWrite'] },
      { type: WRITE, data: pattern(512) },
      EPERM,
      /read-only/,
    ],
    ['a trim of a read-only export', { without: ['prepareWrite'] }, { type: TRIM, length: 512 }, EPERM],
    [
      'zeroes to a read-only export',
      { without: ['prepareWrite'] },
      { type: WRITE_ZEROES, length: 512 },
      EPERM,
    ],
    ['an unaligned read', { blockSizes: { minimum: 512 } }, { type: READ, offset: 256, length: 512 }, EINVAL],
    [
      'an unaligned write',
      { blockSizes: { minimum: 512 } },
      { type: WRITE, data: pattern(511) },
      EINVAL,
      /512/,
    ],
    [
      'too long a read',
      { blockSizes: { maximum: 65536 } },
      { type: READ, length: 65537 },
      EOVERFLOW,
      /65536/,
    ],
    ['too long a write', { blockSizes: { maximum: 65536 } }, { type: WRITE, data: pattern(65537) }, EINVAL],
  ];
  for (const [what, options, request, errno, text] of refused) {
    test(`refused, and the client goes on: ${what}`, async (t) => {
      const target = new MemoryExport({ size, ...options });
      const { open } = await startServer(t, dir, { target });
      const client = await open({ structured: true, context: true });
      const outcome = await client.call(request);
      assert.equal(outcome.errno, errno);
      assert.match(outcome.text, text ?? / bytes at /);
      assert.equal(target.calls.length, 0);
      assert.equal((await client.call({ type: READ, offset: 512, length: 512 })).errno, 0);
      const simple = await open();
      // A read that is too long for chunks to help has another error there.
      assert.equal((await simple.call(request)).errno, errno === EOVERFLOW ? EINVAL : errno);
      assert.equal((await simple.call({ type: READ, offset: 512, length: 512 })).errno, 0);
    });
  }

  test('DF needs structured replies, and block status a selected context', async (t) => {
    const { open } = await startServer(t, dir, { target: new MemoryExport({ size }) });
    const simple = await open();
    assert.equal((await simple.call({ type: READ, length: 1, flags: DF })).errno, EINVAL);
    assert.equal((await simple.call({ type: BLOCK_STATUS, length: 1 })).errno, EINVAL);
    const structured = await open({ structured: true });
    assert.equal((await structured.call({ type: BLOCK_STATUS, length: 1 })).errno, EINVAL);
  });

  test('an export that is added read-only offers nothing that changes it', async (t) => {
    const { server, open } = await startServer(t, dir);
    server.addExport({ name: '', target: new MemoryExport({ size }), readOnly: true });
    const client = await open();
    assert.equal(client.flags, 0b0101_0000_1111);
    assert.equal((await client.call({ type: WRITE, data: pattern(1) })).errno, EPERM);
  });

  describe('what an export fails with', () => {
    const cases: [number, RawRequest, number][] = [
      [1, { type: WRITE, data: pattern(1) }, EPERM],
      [30, { type: WRITE, data: pattern(1) }, EPERM],
      [5, { type: READ, length: 1 }, EIO],
      [-5, { type: READ, length: 1 }, EIO],
      [12, { type: READ, length: 1 }, 12],
      [22, { type: READ, length: 1 }, EINVAL],
      [28, { type: WRITE, data: pattern(1) }, ENOSPC],
      [-28, { type: WRITE, data: pattern(1) }, ENOSPC],
      [122, { type: WRITE, data: pattern(1) }, ENOSPC],
      [27, { type: WRITE, data: pattern(1) }, ENOSPC],
      [108, { type: FLUSH }, 108],
      [110, { type: FLUSH }, EIO],
      [0, { type: FLUSH }, EIO],
      [75, { type: TRIM, length: 1 }, EOVERFLOW],
      [75, { type: READ, length: 1 }, EINVAL],
      [95, { type: WRITE_ZEROES, length: 1, flags: FAST_ZERO }, ENOTSUP],
      [95, { type: WRITE_ZEROES, length: 1 }, EINVAL],
      [95, { type: TRIM, length: 1 }, EINVAL],
      [5, { type: BLOCK_STATUS, length: 1 }, EIO],
    ];
    for (const isAsync of [false, true]) {
      test(isAsync ? 'with a promise' : 'by throwing', async (t) => {
        const target = new MemoryExport({ size, isAsync });
        const { open } = await startServer(t, dir, { target });
        const client = await open({ structured: true, context: true });
        for (const [errno, request, expected] of cases) {
          target.failure = new ErrnoError(errno);
          const outcome = await client.call(request);
          assert.equal(outcome.errno, expected, `errno ${errno} of ${JSON.stringify(request)}`);
        }
        target.failure = new Error('no number at all');
        assert.equal((await client.call({ type: READ, length: 1 })).errno, EIO);
        target.failure = undefined;
        assert.equal((await client.call({ type: READ, length: 1 })).errno, 0);
        target.assertBalanced();
      });
    }
  });

  test('an export that breaks its contract costs its clients an error, not the connection', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    const release = t.mock.fn();
    const cancel = t.mock.fn();
    const answers: Outcome[] = [];
    t.mock.method(target, 'read', () => ({ parts: [new Uint8Array(10)], release }), { times: 1 });
    answers.push(await client.call({ type: READ, length: 512 }));
    t.mock.method(
      target as Required<MemoryExport>,
      'prepareWrite',
      () => ({ buffer: new Uint8Array(10), cancel, submit: () => undefined }),
      { times: 1 },
    );
    answers.push(await client.call({ type: WRITE, data: pattern(512) }));
    assert.deepEqual(
      answers.map((answer) => answer.errno),
      [EIO, EIO],
    );
    assert.equal(release.mock.callCount(), 1);
    assert.equal(cancel.mock.callCount(), 1);
    assert.equal((await client.call({ type: READ, length: 512 })).errno, 0);
  });
});

async function untilCalls(target: MemoryExport, count: number): Promise<void> {
  while (target.calls.length < count) {
    await new Promise<void>((resume) => setImmediate(resume));
  }
}
