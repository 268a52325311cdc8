/** What the block driver nbd asks of a server, and what becomes of the answers. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { describe, type TestContext, test } from 'node:test';
import {
  Command,
  CommandFlag,
  NbdErrno,
  ReplyType,
  TransmissionFlag,
} from '../../../src/base/nbd-protocol.js';
import { BlockFlag } from '../../../src/block/engine.js';
import type { NbdNodeOptions } from '../../../src/block/node.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import {
  allFlags,
  answerZeroes,
  chunk,
  dataChunk,
  errorChunk,
  holeChunk,
  type ScriptedOptions,
  ScriptedServer,
  simpleReply,
} from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';

const folder = makeTempDir();

interface Setup {
  readonly server: ScriptedServer;
  readonly disk: NbdDisk;
}

async function start(
  t: TestContext,
  script: ScriptedOptions = {},
  options: Partial<NbdNodeOptions> = {},
): Promise<Setup> {
  const server = await new ScriptedServer(script).listen(folder);
  t.after(() => server.stop());
  const disk = await NbdDisk.open({ server: server.address, ...options });
  t.after(() => disk.close());
  return { server, disk };
}

/** A server with a memory. */
function remembering(size: number, structured: boolean): { bytes: Buffer; script: ScriptedOptions } {
  const bytes = Buffer.alloc(size);
  const script: ScriptedOptions = {
    size,
    structured,
    onRequest: (request, socket) => {
      const { command, offset, length } = request;
      if (command === Command.READ) {
        const data = bytes.subarray(offset, offset + length);
        socket.write(structured ? dataChunk(request, offset, data) : simpleReply(request, 0, data));
        return;
      }
      if (command === Command.WRITE) {
        request.payload.copy(bytes, offset);
      }
      answerZeroes(request, socket, structured);
    },
  };
  return { bytes, script };
}

const last = ({ server }: Setup): { command: number; flags: number; offset: number; length: number } => {
  const { command, flags, offset, length } = server.requests[server.requests.length - 1];
  return { command, flags, offset, length };
};

for (const structured of [true, false]) {
  describe(structured ? 'structured replies' : 'simple replies', () => {
    test('many reads and writes of all lengths at once', async (t) => {
      const size = 8 << 20;
      const { bytes, script } = remembering(size, structured);
      const { disk } = await start(t, script);
      const data = randomBytes(size);
      const step = 64 << 10;
      await Promise.all(
        Array.from({ length: size / step }, (_, n) =>
          disk.write(n * step, data.subarray(n * step, (n + 1) * step), { at: n * step }),
        ),
      );
      assert.ok(bytes.equals(data));
      disk.memory.fill(0);
      const reads: Promise<Buffer>[] = [];
      let end = 0;
      for (let length = 512; end + length <= size; end += length, length = 512 * (1 + (end % 97))) {
        reads.push(disk.read(end, length, end));
      }
      await Promise.all(reads);
      assert.ok(
        data.subarray(0, end).equals(disk.memory.subarray(0, end)),
        'what was read is what was written',
      );
    });

    test('one at a time', async (t) => {
      const { script } = remembering(1 << 20, structured);
      const { disk } = await start(t, script);
      for (const length of [512, 4096, 65_024, 65_536, 131_072, 1 << 20]) {
        const data = randomBytes(length);
        await disk.write(0, data);
        disk.memory.fill(0, 0, length);
        assert.ok((await disk.read(0, length)).equals(data), `${length} bytes`);
      }
    });

    test('an error of the server is the request’s', async (t) => {
      const errors = [
        [NbdErrno.EIO, 'EIO'],
        [NbdErrno.ENOSPC, 'ENOSPC'],
        [NbdErrno.EPERM, 'EPERM'],
        [NbdErrno.EINVAL, 'EINVAL'],
        [12345, 'EIO'],
      ] as const;
      let n = 0;
      const { disk } = await start(t, {
        structured,
        onRequest: (request, socket) => {
          const [error] = errors[n++ >> 1];
          socket.write(structured ? errorChunk(request, error, 'no luck') : simpleReply(request, error));
        },
      });
      for (const [, errnoName] of errors) {
        await assert.rejects(disk.read(0, 512), { errnoName });
        await assert.rejects(disk.write(0, Buffer.alloc(512)), { errnoName });
      }
    });
  });
}

describe('structured replies in pieces', () => {
  test('data and holes in any order make the read', async (t) => {
    const { disk } = await start(t, {
      onRequest: (request, socket) => {
        const at = request.offset;
        socket.write(dataChunk(request, at + 3072, Buffer.alloc(1024, 4), false));
        socket.write(holeChunk(request, at + 1024, 1024, false));
        socket.write(dataChunk(request, at, Buffer.alloc(1024, 1), false));
        socket.write(dataChunk(request, at + 2048, Buffer.alloc(1024, 3), false));
        socket.write(chunk(request, ReplyType.NONE));
      },
    });
    for (const parallel of [1, 8]) {
      disk.memory.fill(9, 0, 65_536);
      const reads = Array.from({ length: parallel }, (_, n) => disk.read(n * 4096, 4096, n * 4096));
      for (const data of await Promise.all(reads)) {
        const expected = [1, 0, 3, 4].map((byte) => Buffer.alloc(1024, byte));
        assert.ok(data.equals(Buffer.concat(expected)));
      }
    }
  });

  test('an error after half the data fails the read, and the next one succeeds', async (t) => {
    let fail = true;
    const { disk } = await start(t, {
      onRequest: (request, socket) => {
        if (fail) {
          socket.write(dataChunk(request, request.offset, Buffer.alloc(512, 1), false));
          socket.write(errorChunk(request, NbdErrno.EIO, 'half'));
        } else {
          answerZeroes(request, socket, true);
        }
        fail = !fail;
      },
    });
    await assert.rejects(disk.read(0, 1024), { errnoName: 'EIO' });
    await disk.read(0, 1024);
  });

  test('bytes that come one by one', async (t) => {
    const data = randomBytes(1024);
    const { disk } = await start(t, {
      onRequest: (request, socket) => {
        const reply = dataChunk(request, request.offset, data);
        let at = 0;
        const drip = (): void => {
          if (at < reply.length) {
            socket.write(reply.subarray(at, at + (at < 40 ? 1 : 100)));
            at += at < 40 ? 1 : 100;
            setImmediate(drip);
          }
        };
        drip();
      },
    });
    assert.ok((await disk.read(0, 1024)).equals(data));
  });
});

describe('commands', () => {
  test('flush, FUA, trim and write-zeroes where the server has them', async (t) => {
    const setup = await start(t, {}, { discard: 'unmap' });
    const { disk } = setup;
    assert.deepEqual(disk.node.features, {
      flush: true,
      discard: true,
      writeZeroes: true,
      writeZeroesMayUnmap: true,
    });
    await disk.flush();
    assert.deepEqual(last(setup), { command: Command.FLUSH, flags: 0, offset: 0, length: 0 });
    await disk.write(4096, Buffer.alloc(512, 1), { flags: BlockFlag.FUA });
    assert.deepEqual(last(setup), {
      command: Command.WRITE,
      flags: CommandFlag.FUA,
      offset: 4096,
      length: 512,
    });
    await disk.discard(8192, 65_536);
    assert.deepEqual(last(setup), { command: Command.TRIM, flags: 0, offset: 8192, length: 65_536 });
    await disk.writeZeroes(512, 1024);
    const zeroes = { command: Command.WRITE_ZEROES, flags: CommandFlag.NO_HOLE, offset: 512, length: 1024 };
    assert.deepEqual(last(setup), zeroes);
    await disk.writeZeroes(512, 1024, BlockFlag.MAY_UNMAP | BlockFlag.FUA);
    assert.deepEqual(last(setup), { ...zeroes, flags: CommandFlag.FUA });
  });

  test('without them: a flush instead of FUA, zeroes that are sent, discards that do nothing', async (t) => {
    const flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH;
    const setup = await start(t, { flags }, { discard: 'unmap' });
    const { disk, server } = setup;
    assert.deepEqual(disk.node.features, {
      flush: true,
      discard: false,
      writeZeroes: true,
      writeZeroesMayUnmap: false,
    });
    await disk.write(0, Buffer.alloc(512, 1), { flags: BlockFlag.FUA });
    await disk.discard(0, 4096);
    await disk.writeZeroes(0, 3 << 18);
    assert.deepEqual(
      server.requests.map(({ command, length }) => [command, length]),
      [
        [Command.WRITE, 512],
        [Command.FLUSH, 0],
        [Command.WRITE, 3 << 18],
      ],
    );
    assert.ok(server.requests[2].payload.every((byte) => byte === 0));
  });

  test('a server without flush is one whose writes are durable', async (t) => {
    const { disk, server } = await start(t, { flags: TransmissionFlag.HAS_FLAGS });
    assert.equal(disk.node.features.flush, false);
    await disk.flush();
    await disk.write(0, Buffer.alloc(512), { flags: BlockFlag.FUA });
    assert.equal(server.requests.length, 1);
  });

  test('cache.no-flush gives durability up; discard=ignore keeps the blocks', async (t) => {
    const { disk, server } = await start(t, {}, { cache: { noFlush: true } });
    await disk.flush();
    await disk.write(0, Buffer.alloc(512), { flags: BlockFlag.FUA });
    await disk.discard(0, 4096);
    assert.deepEqual(
      server.requests.map(({ command, flags }) => [command, flags]),
      [[Command.WRITE, 0]],
    );
  });

  test('what is longer than the server takes goes in parts', async (t) => {
    const size = 1 << 20;
    const { bytes, script } = remembering(size, true);
    const { disk, server } = await start(t, { ...script, blockSizes: [512, 4096, 65_536] });
    const data = randomBytes(200 << 10);
    await disk.write(4096, data);
    assert.deepEqual(
      server.requests.map(({ length }) => length),
      [65_536, 65_536, 65_536, 8192],
    );
    assert.ok(bytes.subarray(4096, 4096 + data.length).equals(data));
    disk.memory.fill(0, 0, data.length);
    assert.ok((await disk.read(4096, data.length)).equals(data));
  });
});

describe('what a node knows of its export', () => {
  test('block sizes become limits', async (t) => {
    const { disk } = await start(t, { blockSizes: [4096, 65_536, 1 << 20] });
    assert.deepEqual(disk.node.limits, {
      requestAlignment: 4096,
      physicalBlockSize: 4096,
      optimalIoSize: 65_536,
      discardAlignment: 4096,
    });
  });

  test('a server without GO is asked by NBD_OPT_EXPORT_NAME', async (t) => {
    const { disk } = await start(t, { withoutGo: true, size: 4096 });
    assert.equal(disk.node.size, 4096);
    await disk.read(0, 4096);
  });

  test('a read-only export is opened as such, or not at all', async (t) => {
    const server = await new ScriptedServer({ flags: allFlags | TransmissionFlag.READ_ONLY }).listen(folder);
    t.after(() => server.stop());
    await assert.rejects(NbdDisk.open({ server: server.address }), { code: 'IMAGE_READ_ONLY' });
    for (const how of [{ readOnly: true }, { autoReadOnly: true }]) {
      const disk = await NbdDisk.open({ server: server.address, ...how });
      assert.equal(disk.node.readOnly, true);
      await disk.close();
    }
  });

  test('it has the URI as its name, no resizing, and no half blocks', async (t) => {
    const { disk, server } = await start(t, {}, { exportName: 'disk' });
    assert.equal(disk.node.filename, `nbd+unix:///disk?socket=${server.address.path}`);
    await assert.rejects(disk.node.resize(4096), { code: 'NOT_SUPPORTED' });
    const odd = await new ScriptedServer({ size: 1000 }).listen(folder);
    t.after(() => odd.stop());
    await assert.rejects(NbdDisk.open({ server: odd.address }), { code: 'IMAGE_INVALID' });
  });

  test('TCP', async (t) => {
    const server = await new ScriptedServer().listenTcp();
    t.after(() => server.stop());
    const disk = await NbdDisk.open({ server: { ...server.inetAddress, host: 'localhost' } });
    t.after(() => disk.close());
    assert.equal((await disk.read(0, 4096)).length, 4096);
  });
});
