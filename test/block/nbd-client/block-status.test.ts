/** What a server says is allocated, honest or not: it becomes whole extents of the request, and never more. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { Command, NbdErrno, Option, OptionReply, ReplyType } from '../../../src/base/nbd-protocol.js';
import { allocationExtents, readsAsZeroes } from '../../../src/block/allocation.js';
import { canTellStatus } from '../../../src/block/engine.js';
import { EngineClient } from '../../../src/block/engine-client.js';
import { wholeExtents } from '../../../src/block/extent-list.js';
import { openBlockNode } from '../../../src/block/open.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import { propertyRuns } from '../../support/property.js';
import {
  allFlags,
  answerZeroes,
  chunk,
  errorChunk,
  exportInfo,
  greeting,
  metaContext,
  optionReply,
  type ScriptedOptions,
  ScriptedServer,
  scriptedContext,
  simpleReply,
  statusChunk,
  type WireExtent,
  type WireRequest,
} from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const folder = makeTempDir();
const size = 1 << 20;
const data = { hole: false, zero: false };
const hole = { hole: true, zero: true };

async function open(t: TestContext, script: ScriptedOptions, reconnectDelay = 0): Promise<NbdDisk> {
  const options = { size, allocationContext: scriptedContext, ...script };
  const server = await new ScriptedServer(options).listen(folder);
  t.after(() => server.stop());
  const disk = await NbdDisk.open({ server: server.address, reconnectDelay });
  t.after(() => disk.close());
  return disk;
}

/** Answers block status with these extents, everything else with zeroes. */
function tells(extents: (request: WireRequest) => readonly WireExtent[]): ScriptedOptions {
  return {
    onRequest: (request, socket) => {
      if (request.command === Command.BLOCK_STATUS) {
        socket.write(statusChunk(request, extents(request)));
      } else {
        answerZeroes(request, socket, true);
      }
    },
  };
}

const all = { offset: 0, length: size };

describe('block status of an NBD server', () => {
  test('extents are told as they are, with both of their flags', async (t) => {
    const disk = await open(
      t,
      tells(() => [
        [65_536, 0],
        [4096, 3],
        [4096, 1],
        [4096, 2],
        [size - 77_824, 3],
      ]),
    );
    assert.equal(canTellStatus(disk.node.engine), true);
    assert.deepEqual(await allocationExtents(disk.client, all), [
      { length: 65_536, ...data },
      { length: 4096, ...hole },
      { length: 4096, hole: true, zero: false },
      { length: 4096, hole: false, zero: true },
      { length: size - 77_824, ...hole },
    ]);
  });

  test('a server without base:allocation is not asked, and is all data', async (t) => {
    const disk = await open(t, {
      onRequest: (request) => assert.fail(`command ${request.command}`),
      allocationContext: undefined,
    });
    assert.equal(canTellStatus(disk.node.engine), false);
    assert.deepEqual(await allocationExtents(disk.client, all), [{ length: size, ...data }]);
  });

  test('what reaches beyond the request, unknown flags, and more than was asked for are cut off', async (t) => {
    const disk = await open(
      t,
      tells(() => [
        [4096, 0xffff_fffc],
        [0xffff_fe00, 0xffff_ffff],
        [512, 0],
      ]),
    );
    assert.deepEqual(await allocationExtents(disk.client, { offset: 8192, length: 65_536 }), [
      { length: 4096, ...data },
      { length: 61_440, ...hole },
    ]);
  });

  test('a hundred thousand extents are heard to the end, and a thousand of them are kept', async (t) => {
    const many = Array.from({ length: 100_000 }, (_, n): WireExtent => [512, n % 2 === 0 ? 3 : 0]);
    const disk = await open(t, { ...tells(() => many), size: 1 << 28 });
    const extents = await allocationExtents(disk.client, { offset: 0, length: 1 << 28 });
    assert.equal(extents.length, 1024);
    assert.ok(extents.every(({ length, hole: isHole }, n) => length === 512 && isHole === (n % 2 === 0)));
    assert.ok((await disk.read(0, 4096)).every((byte) => byte === 0));
  });

  test('extents and data come in any order on one connection', async (t) => {
    const disk = await open(
      t,
      tells(({ length }) => Array.from({ length: length / 512 }, (_, n): WireExtent => [512, n % 2 ? 3 : 0])),
    );
    const work = Array.from({ length: 64 }, async (_, n) => {
      const offset = (n % 8) * 65_536;
      if (n % 3 === 0) {
        const extents = await allocationExtents(disk.client, { offset, length: 65_536 });
        assert.equal(extents.length, 128);
      } else {
        disk.memory.fill(0xff, n * 65_536, (n + 1) * 65_536);
        assert.ok((await disk.read(offset, 65_536, n * 65_536)).every((byte) => byte === 0));
      }
    });
    await Promise.all(work);
  });

  test('an error of the server means that nothing is known, and is no end', async (t) => {
    const disk = await open(t, {
      onRequest: (request, socket) =>
        request.command === Command.BLOCK_STATUS
          ? socket.write(errorChunk(request, NbdErrno.EINVAL, 'no'))
          : answerZeroes(request, socket, true),
    });
    assert.deepEqual(await allocationExtents(disk.client, all), [{ length: size, ...data }]);
    assert.equal((await disk.read(0, 512)).length, 512);
  });

  test('an answer that a broken connection cuts short is asked for again', async (t) => {
    let answers = 0;
    const disk = await open(
      t,
      {
        onRequest: (request, socket) => {
          const whole = Array.from({ length: size / 512 }, (_, n): WireExtent => [512, n % 2 ? 3 : 0]);
          const first = answers++ === 0;
          const bytes = statusChunk(request, first ? whole : [[4096, 3]]);
          if (first) {
            socket.write(bytes.subarray(0, 5000), () => socket.destroy());
          } else {
            socket.write(bytes);
          }
        },
      },
      30,
    );
    assert.deepEqual(await allocationExtents(disk.client, all), [{ length: 4096, ...hole }]);
    assert.equal(answers, 2);
  });

  test('a server that is back without base:allocation is all data', async (t) => {
    const path = `${folder}/lost-context.sock`;
    const first = await new ScriptedServer({
      size,
      allocationContext: scriptedContext,
      onRequest: () => undefined,
    }).listenAt(path);
    const disk = await NbdDisk.open({ server: first.address, reconnectDelay: 30 });
    t.after(() => disk.close());
    const asked = allocationExtents(disk.client, all);
    await until('the request at the server', () => first.requests.length === 1);
    await first.stop();
    const second = await new ScriptedServer({ size }).listenAt(path);
    t.after(() => second.stop());
    assert.deepEqual(await asked, [{ length: size, ...data }]);
    assert.deepEqual(await allocationExtents(disk.client, all), [{ length: size, ...data }]);
    assert.equal(second.requests.length, 0);
  });

  test('filters pass the question on, raw to where its part begins', async (t) => {
    const server = await new ScriptedServer({
      size,
      allocationContext: scriptedContext,
      ...tells(({ offset }) => [[512, offset === 69_632 ? 3 : 0]]),
    }).listen(folder);
    t.after(() => server.stop());
    const node = await openBlockNode({
      driver: 'raw',
      nodeName: 'part',
      offset: 65_536,
      file: { driver: 'fault', rules: [], file: { driver: 'nbd', server: server.address } },
    });
    t.after(() => node.close());
    const client = new EngineClient(node);
    t.after(() => client.close(1000));
    assert.deepEqual(await allocationExtents(client, { offset: 4096, length: 8192 }), [
      { length: 512, ...hole },
    ]);
    assert.deepEqual(server.requests[0], { ...server.requests[0], offset: 69_632, length: 8192 });
  });

  test('a disk of zeroes is told from one with a byte of data, however many answers it takes', async (t) => {
    let last = 3;
    const disk = await open(
      t,
      tells(({ offset, length }) => [[Math.min(length, 131_072), offset + 131_072 < size ? 2 : last]]),
    );
    assert.equal(await readsAsZeroes(disk.client), true);
    last = 0;
    assert.equal(await readsAsZeroes(disk.client), false);
  });

  test('a server that tells a disk in crumbs is not asked for ever', async (t) => {
    let asked = 0;
    const disk = await open(t, {
      ...tells(() => {
        asked++;
        return [[512, 3]];
      }),
      size: 1 << 30,
    });
    assert.equal(await readsAsZeroes(disk.client), false);
    assert.ok(asked <= 4096);
  });
});

describe('lies about the block status end the connection for good', () => {
  const lies: Record<string, (request: WireRequest) => Buffer> = {
    'an extent without length': (request) =>
      statusChunk(request, [
        [4096, 0],
        [0, 0],
      ]),
    'no extent': (request) => statusChunk(request, []),
    'half an extent': (request) => chunk(request, ReplyType.BLOCK_STATUS, Buffer.alloc(16, 0x80)),
    'no context': (request) => chunk(request, ReplyType.BLOCK_STATUS),
    'another context': (request) => statusChunk(request, [[4096, 0]], { context: 1 }),
    'a chunk without end': (request) => {
      const bytes = statusChunk(request, [[4096, 0]]);
      bytes.writeUInt32BE(0xffff_fffc, 16);
      return bytes;
    },
    'one chunk more': (request) =>
      Buffer.concat([
        statusChunk(request, [[4096, 0]], { done: false }),
        statusChunk(request, [[4096, 0]], { done: false }),
      ]),
    'an answer without any': (request) => chunk(request, ReplyType.NONE),
    'a simple reply': (request) => simpleReply(request),
  };
  for (const [what, lie] of Object.entries(lies)) {
    test(what, async (t) => {
      const disk = await open(t, { onRequest: (request, socket) => socket.write(lie(request)) }, 30);
      assert.deepEqual(await allocationExtents(disk.client, all), [{ length: size, ...data }]);
      await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
    });
  }

  test('extents for a request that is a read', async (t) => {
    const disk = await open(t, {
      onRequest: (request, socket) => socket.write(statusChunk(request, [[512, 3]])),
    });
    await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  });
});

describe('the handshake for base:allocation', () => {
  const structured = optionReply(Option.STRUCTURED_REPLY, OptionReply.ACK);
  const meta = (type: number, bytes?: Buffer): Buffer => optionReply(Option.SET_META_CONTEXT, type, bytes);
  const context = meta(OptionReply.META_CONTEXT, metaContext(1, 'base:allocation'));
  const rest = Buffer.concat([
    optionReply(Option.GO, OptionReply.INFO, exportInfo(size, allFlags)),
    optionReply(Option.GO, OptionReply.ACK),
  ]);
  const openAgainst = async (t: TestContext, answers: readonly Buffer[]): Promise<NbdDisk> => {
    const server = await new ScriptedServer({
      onConnection: (socket) => {
        socket.resume();
        socket.write(Buffer.concat([greeting(), structured, ...answers]));
      },
    }).listen(folder);
    t.after(() => server.stop());
    const disk = await NbdDisk.open({ server: server.address });
    t.after(() => disk.close());
    return disk;
  };

  const refusals: Record<string, Buffer[]> = {
    'no such option': [meta(OptionReply.ERR_UNSUP)],
    'no such context': [meta(OptionReply.ACK)],
    'a policy': [meta(OptionReply.ERR_POLICY, Buffer.from('no'))],
    'a context, and then an error': [context, meta(OptionReply.ERR_INVALID)],
  };
  for (const [what, answers] of Object.entries(refusals)) {
    test(`goes on without it: ${what}`, async (t) => {
      assert.equal(canTellStatus((await openAgainst(t, [...answers, rest])).node.engine), false);
    });
  }

  test('takes the number that the server gives', async (t) => {
    const disk = await openAgainst(t, [context, meta(OptionReply.ACK), rest]);
    assert.equal(canTellStatus(disk.node.engine), true);
  });

  const lies: Record<string, Buffer[]> = {
    'contexts without end': new Array(1000).fill(context),
    'another context': [meta(OptionReply.META_CONTEXT, metaContext(1, 'qemu:dirty-bitmap:x'))],
    'a context without number': [meta(OptionReply.META_CONTEXT, Buffer.alloc(3))],
    'what is no answer': [meta(OptionReply.INFO, Buffer.alloc(12))],
  };
  for (const [what, answers] of Object.entries(lies)) {
    test(`ends: ${what}`, async (t) => {
      await assert.rejects(openAgainst(t, answers), { code: 'PROTOCOL', message: /metadata context/ });
    });
  }
});

describe('extents in whole blocks', () => {
  const list = (...extents: readonly WireExtent[]): Uint32Array => Uint32Array.from(extents.flat());

  test('a block that extents share is what is true of all of them', () => {
    assert.deepEqual(wholeExtents(list([700, 3], [324, 2], [512, 3], [100, 0], [412, 3]), 512), [
      { length: 512, ...hole },
      { length: 512, hole: false, zero: true },
      { length: 512, ...hole },
      { length: 512, ...data },
    ]);
  });

  test('a list that ends in the middle of its first block is one block of data', () => {
    assert.deepEqual(wholeExtents(list([100, 3]), 512), [{ length: 512, ...data }]);
    assert.deepEqual(wholeExtents(list(), 4096), [{ length: 4096, ...data }]);
    assert.deepEqual(wholeExtents(list([600, 3], [0, 0], [4096, 3]), 512), [{ length: 512, ...hole }]);
  });

  test('any list: whole blocks, nothing empty, no two neighbours alike, and never more zero than was told', () => {
    const extent = fc.tuple(fc.integer({ min: 1, max: 3000 }), fc.integer({ min: 0, max: 3 }));
    fc.assert(
      fc.property(fc.array(extent, { maxLength: 40 }), fc.constantFrom(512, 4096), (extents, block) => {
        const result = wholeExtents(list(...extents), block);
        const bytes = extents.flatMap(([length, flags]) => new Array<number>(length).fill(flags));
        assert.ok(result.length > 0);
        let at = 0;
        result.forEach(({ length, hole: isHole, zero }, n) => {
          assert.ok(length > 0 && length % block === 0);
          assert.ok(n === 0 || isHole !== result[n - 1].hole || zero !== result[n - 1].zero);
          for (let start = at; start < at + length; start += block) {
            const told = bytes.slice(start, start + block);
            const isWhole = told.length === block;
            assert.equal(isHole, isWhole && told.every((flags) => (flags & 1) !== 0));
            assert.equal(zero, isWhole && told.every((flags) => (flags & 2) !== 0));
          }
          at += length;
        });
        const whole = Math.floor(bytes.length / block) * block;
        assert.equal(at, Math.max(whole, block));
      }),
      propertyRuns(100),
    );
  });
});

test('any bytes as a chunk of extents: whole extents within the request, or an error', async (t) => {
  let answer: (request: WireRequest) => Buffer = () => Buffer.alloc(0);
  const options = {
    size,
    allocationContext: scriptedContext,
    onRequest: (request, socket) => socket.write(answer(request)),
  } satisfies ScriptedOptions;
  const server = await new ScriptedServer(options).listen(folder);
  t.after(() => server.stop());
  const extent = fc.tuple(
    fc.oneof(fc.integer({ min: 0, max: 8192 }), fc.nat(0xffff_ffff)),
    fc.nat(0xffff_ffff),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(extent, { maxLength: 3000 }), fc.nat(7), async (extents, extra) => {
      answer = (request) => {
        const bytes = statusChunk(request, extents);
        bytes.writeUInt32BE(bytes.length - 20 - (extra === 0 ? 4 : 0), 16);
        return bytes;
      };
      const disk = await NbdDisk.open({ server: server.address });
      try {
        const found = await allocationExtents(disk.client, { offset: 4096, length: 65_536 });
        const total = found.reduce((sum, { length }) => sum + length, 0);
        assert.ok(found.length >= 1 && found.length <= 1024);
        assert.ok(total > 0 && total <= 65_536 && found.every(({ length }) => length % 512 === 0));
      } finally {
        await disk.close();
      }
    }),
    propertyRuns(20),
  );
});
