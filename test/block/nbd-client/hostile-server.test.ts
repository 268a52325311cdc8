/** NBD servers that lie, stop in the middle, or never stop: an error in bounded time, and nothing else. */
import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { describe, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { NbdErrno, Option, OptionReply, ReplyType } from '../../../src/base/nbd-protocol.js';
import { handshake } from '../../../src/block/drivers/nbd-client/handshake.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import { propertyRuns } from '../../support/property.js';
import {
  allFlags,
  blockSizeInfo,
  chunk,
  dataChunk,
  errorChunk,
  exportInfo,
  greeting,
  holeChunk,
  optionReply,
  ScriptedServer,
  simpleReply,
  type WireRequest,
} from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';

const folder = makeTempDir();

/** Opens a node of a server that says these bytes, whatever it is told, and then nothing any more. */
async function openAgainst(t: TestContext, answers: readonly Buffer[]): Promise<NbdDisk> {
  const server = await new ScriptedServer({
    onConnection: (socket) => {
      socket.resume();
      socket.end(Buffer.concat(answers));
    },
  }).listen(folder);
  t.after(() => server.stop());
  return NbdDisk.open({ server: server.address });
}

const noStructured = optionReply(Option.STRUCTURED_REPLY, OptionReply.ERR_UNSUP);
const go = (type: number, data?: Buffer): Buffer => optionReply(Option.GO, type, data);
const goodExport = go(OptionReply.INFO, exportInfo(1 << 20, allFlags));

describe('handshakes', () => {
  const hugeHeader = (length: number): Buffer => {
    const bytes = optionReply(Option.GO, OptionReply.INFO);
    bytes.writeUInt32BE(length, 16);
    return bytes;
  };
  const afterFlags = (...replies: Buffer[]): Buffer[] => [
    greeting(),
    Buffer.alloc(0),
    noStructured,
    ...replies,
  ];
  const cases: readonly { what: string; answers: Buffer[]; code: string; message: RegExp }[] = [
    {
      what: 'no NBD at all',
      answers: [Buffer.from('HTTP/1.1 400 Bad Request\r\n')],
      code: 'PROTOCOL',
      message: /does not speak NBD/,
    },
    {
      what: 'oldstyle',
      answers: [Buffer.concat([greeting().subarray(0, 8), Buffer.alloc(144)])],
      code: 'NOT_SUPPORTED',
      message: /oldstyle/,
    },
    {
      what: 'closes at once',
      answers: [],
      code: 'PROTOCOL',
      message: /closed the connection during the handshake/,
    },
    {
      what: 'closes in the middle',
      answers: [greeting().subarray(0, 10)],
      code: 'PROTOCOL',
      message: /closed the connection/,
    },
    {
      what: 'an endless option reply',
      answers: afterFlags(hugeHeader(0xffff_fff0)),
      code: 'PROTOCOL',
      message: /with 4294967280 bytes/,
    },
    {
      what: 'replies without end',
      answers: afterFlags(Buffer.concat(new Array(1000).fill(goodExport))),
      code: 'PROTOCOL',
      message: /does not stop/,
    },
    {
      what: 'an answer to another option',
      answers: afterFlags(optionReply(Option.LIST, OptionReply.ACK)),
      code: 'PROTOCOL',
      message: /does not answer option 7/,
    },
    {
      what: 'no size',
      answers: afterFlags(go(OptionReply.ACK)),
      code: 'PROTOCOL',
      message: /did not tell the size/,
    },
    {
      what: 'a short size',
      answers: afterFlags(go(OptionReply.INFO, exportInfo(4096, 1).subarray(0, 11))),
      code: 'PROTOCOL',
      message: /in 11 bytes/,
    },
    {
      what: 'a size beyond counting',
      answers: afterFlags(
        Buffer.concat([
          go(OptionReply.INFO, Buffer.concat([Buffer.alloc(2), Buffer.alloc(8, 0xff), Buffer.from([0, 1])])),
          go(OptionReply.ACK),
        ]),
      ),
      code: 'PROTOCOL',
      message: /larger than/,
    },
    {
      what: 'block sizes that are none',
      answers: afterFlags(
        Buffer.concat([goodExport, go(OptionReply.INFO, blockSizeInfo([3, 4096, 65_536]))]),
      ),
      code: 'PROTOCOL',
      message: /block sizes 3/,
    },
    {
      what: 'no such export',
      answers: afterFlags(go(OptionReply.ERR_UNKNOWN, Buffer.from('try\u001b[31m another\n'))),
      code: 'NOT_FOUND',
      message: /no export '' for us; it says: try \[31m another$/,
    },
    {
      what: 'TLS wanted',
      answers: [greeting(), optionReply(Option.STRUCTURED_REPLY, OptionReply.ERR_TLS_REQD)],
      code: 'PERMISSION_DENIED',
      message: /requires TLS/,
    },
    {
      what: 'not for us',
      answers: afterFlags(go(OptionReply.ERR_POLICY)),
      code: 'PERMISSION_DENIED',
      message: /denies export/,
    },
  ];
  for (const { what, answers, code, message } of cases) {
    test(what, async (t) => {
      await assert.rejects(openAgainst(t, answers), { code, message });
    });
  }

  test('any bytes end in a result or in an error of ours, and in bounded time', () =>
    fc.assert(
      fc.property(
        fc.array(
          fc.oneof(
            fc.uint8Array({ maxLength: 64 }),
            fc.constantFrom(greeting(), noStructured, goodExport, go(OptionReply.ACK)),
          ),
        ),
        (parts) => {
          const stream = Buffer.concat(parts);
          const steps = handshake('x');
          let at = 0;
          let step = steps.next(new Uint8Array(0));
          while (step.done !== true) {
            if ('send' in step.value) {
              step = steps.next(new Uint8Array(0));
              continue;
            }
            const { receive } = step.value;
            assert.ok(receive > 0 && receive <= 16 << 10);
            if (at + receive > stream.length) {
              return;
            }
            at += receive;
            try {
              step = steps.next(stream.subarray(at - receive, at));
            } catch (error) {
              assert.equal((error as Error).name, 'VduseError');
              return;
            }
          }
        },
      ),
      propertyRuns(500),
    ));
});

describe('replies', () => {
  const read = 4096;
  const otherCookie = (request: WireRequest): WireRequest => ({ ...request, cookie: Buffer.alloc(8, 7) });
  const withLength = (bytes: Buffer, length: number): Buffer => {
    bytes.writeUInt32BE(length, 16);
    return bytes;
  };
  const data = Buffer.alloc(read, 1);
  const lies: Record<string, (request: WireRequest, socket: Socket) => void> = {
    'no magic': (_request, socket) => socket.write(Buffer.alloc(64, 0xee)),
    'a wrong cookie': (request, socket) => socket.write(chunk(otherCookie(request), ReplyType.NONE)),
    'a wrong cookie in a simple reply': (request, socket) => socket.write(simpleReply(otherCookie(request))),
    'a simple reply with data': (request, socket) => socket.write(simpleReply(request, 0, data)),
    'too much data': (request, socket) =>
      socket.write(dataChunk(request, request.offset, Buffer.alloc(read + 512, 1))),
    'data before the range': (request, socket) =>
      socket.write(dataChunk(request, request.offset - 512, data.subarray(0, 512))),
    'data twice': (request, socket) => {
      socket.write(dataChunk(request, request.offset, data, false));
      socket.write(dataChunk(request, request.offset, data));
    },
    'too little data': (request, socket) =>
      socket.write(dataChunk(request, request.offset, data.subarray(0, 512))),
    'a chunk without data': (request, socket) =>
      socket.write(dataChunk(request, request.offset, Buffer.alloc(0))),
    'a chunk of 4 GiB': (request, socket) =>
      socket.write(withLength(dataChunk(request, request.offset, data), 0xffff_ffff)),
    'a hole of no size': (request, socket) => socket.write(holeChunk(request, request.offset, 0)),
    'a hole beyond the range': (request, socket) =>
      socket.write(holeChunk(request, request.offset, read + 1)),
    'an error of 4 GiB': (request, socket) =>
      socket.write(withLength(errorChunk(request, NbdErrno.EIO), 0xffff_fff0)),
    'an error without a number': (request, socket) =>
      socket.write(chunk(request, ReplyType.ERROR, Buffer.alloc(2))),
    'a chunk of block status': (request, socket) =>
      socket.write(chunk(request, ReplyType.BLOCK_STATUS, Buffer.alloc(12))),
    'nothing, and not the last': (request, socket) =>
      socket.write(chunk(request, ReplyType.NONE, Buffer.alloc(0), false)),
    'errors without end': (request, socket) => {
      const one = errorChunk(request, NbdErrno.EIO, 'x', false);
      socket.write(Buffer.concat(new Array<Buffer>(2000).fill(one)));
    },
    'two replies': (request, socket) => {
      socket.write(errorChunk(request, NbdErrno.EIO));
      socket.write(errorChunk(request, NbdErrno.EIO));
    },
  };
  for (const [what, lie] of Object.entries(lies)) {
    for (const parallel of [1, 4]) {
      test(`${what}, ${parallel} at once: I/O errors, and the server is not spoken to again`, async (t) => {
        const server = await new ScriptedServer({ onRequest: lie }).listen(folder);
        t.after(() => server.stop());
        const disk = await NbdDisk.open({ server: server.address, reconnectDelay: 60 });
        t.after(() => disk.close());
        disk.memory.fill(0x55, 0, 1 << 20);
        const reads = Array.from({ length: parallel }, (_, n) =>
          disk.read(65_536 + n * read, read, n * 2 * read),
        );
        for (const result of await Promise.allSettled(reads)) {
          assert.equal(result.status, 'rejected');
        }
        // What lies beside the buffers is as it was.
        for (let n = 0; n < parallel; n++) {
          const beside = disk.memory.subarray((2 * n + 1) * read, (2 * n + 2) * read);
          assert.ok(beside.every((byte) => byte === 0x55));
        }
        await assert.rejects(disk.flush(), { errnoName: 'EIO' });
        assert.equal(server.connections, 1);
      });
    }
  }

  test('a reply to a write that was asked for is not one with data', async (t) => {
    const server = await new ScriptedServer({
      onRequest: (request, socket) => socket.write(dataChunk(request, request.offset, request.payload)),
    }).listen(folder);
    t.after(() => server.stop());
    const disk = await NbdDisk.open({ server: server.address });
    t.after(() => disk.close());
    await assert.rejects(disk.write(0, Buffer.alloc(512)), { errnoName: 'EIO' });
  });

  test('a server that says nothing keeps nobody from closing', async (t) => {
    const server = await new ScriptedServer({ onRequest: () => {} }).listen(folder);
    t.after(() => server.stop());
    const disk = await NbdDisk.open({ server: server.address });
    const reads = [disk.read(0, 512), disk.write(0, Buffer.alloc(512))].map((read) =>
      assert.rejects(read, { errnoName: 'ECANCELED' }),
    );
    await disk.client.close(50);
    await Promise.all(reads);
    await disk.node.close();
  });
});
