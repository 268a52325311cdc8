/** A server that goes away: requests wait for it, or fail, as the node's options say; and connections are handed on. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Command, NbdErrno } from '../../../src/base/nbd-protocol.js';
import { EngineClient } from '../../../src/block/engine-client.js';
import type { NbdNodeOptions } from '../../../src/block/node.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import { openFdCount } from '../../support/resources.js';
import {
  allFlags,
  answerZeroes,
  dataChunk,
  errorChunk,
  type ScriptedOptions,
  ScriptedServer,
} from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const folder = makeTempDir();
const size = 4 << 20;

async function start(
  t: TestContext,
  script: ScriptedOptions,
  options: Partial<NbdNodeOptions> = {},
): Promise<{ server: ScriptedServer; disk: NbdDisk }> {
  const server = await new ScriptedServer({ size, ...script }).listen(folder);
  t.after(() => server.stop());
  const disk = await NbdDisk.open({ server: server.address, ...options });
  t.after(() => disk.close());
  return { server, disk };
}

/** Keeps what is written; answers `every`th request only. */
function store(bytes: Buffer, answers: () => boolean): ScriptedOptions {
  return {
    onRequest: (request, socket) => {
      const { command, offset, length } = request;
      if (command === Command.WRITE) {
        request.payload.copy(bytes, offset);
      }
      if (!answers()) {
        return;
      }
      if (command === Command.READ) {
        socket.write(dataChunk(request, offset, bytes.subarray(offset, offset + length)));
      } else {
        answerZeroes(request, socket, true);
      }
    },
  };
}

test('requests under way and new ones wait for the server, and nothing is lost', async (t) => {
  const bytes = Buffer.alloc(size);
  let answered = 0;
  let restarted = false;
  const { server, disk } = await start(
    t,
    store(bytes, () => restarted || answered++ < 20),
    { reconnectDelay: 30 },
  );
  const data = randomBytes(size);
  const step = 65_536;
  const write = (n: number): Promise<void> =>
    disk.write(n * step, data.subarray(n * step, (n + 1) * step), { at: n * step });
  const early = Array.from({ length: 32 }, (_, n) => write(n));
  await until('requests at the server', () => server.requests.length >= 32);
  await server.stop();
  bytes.fill(0, 20 * step);
  const late = Array.from({ length: 32 }, (_, n) => write(32 + n));
  await sleep(150);
  restarted = true;
  await server.restart();
  await Promise.all([...early, ...late]);
  assert.ok(bytes.equals(data));
  disk.memory.fill(0, 0, size);
  assert.ok((await disk.read(0, size)).equals(data));
});

test('a connection that breaks again and again in the middle of data loses nothing', async (t) => {
  const bytes = randomBytes(size);
  let count = 0;
  const { server, disk } = await start(
    t,
    {
      onRequest: (request, socket) => {
        const reply = dataChunk(
          request,
          request.offset,
          bytes.subarray(request.offset, request.offset + request.length),
        );
        if (socket.writableEnded) {
          return;
        }
        count++;
        if (count % 7 === 0) {
          socket.end(reply.subarray(0, (count * 997) % reply.length), () => socket.destroy());
        } else {
          socket.write(reply);
        }
      },
    },
    { reconnectDelay: 30 },
  );
  const reads = Array.from({ length: 64 }, (_, n) => disk.read(n * 32_768, 32_768, n * 32_768));
  await Promise.all(reads);
  assert.ok(bytes.subarray(0, 64 * 32_768).equals(disk.memory.subarray(0, 64 * 32_768)));
  assert.ok(server.connections > 3);
});

test('after reconnect-delay requests fail, and the next one finds a server that came back', async (t) => {
  const { server, disk } = await start(t, { onRequest: () => {} }, { reconnectDelay: 1 });
  const begin = performance.now();
  const read = assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await until('the request at the server', () => server.requests.length === 1);
  await server.stop();
  await read;
  assert.ok(performance.now() - begin >= 900);
  const other = await new ScriptedServer({ size }).listenAt(server.address.path);
  t.after(() => other.stop());
  await sleep(150);
  await disk.read(0, 512);
});

test('without reconnect-delay they fail at once, and the next one connects again', async (t) => {
  let answers = false;
  const { server, disk } = await start(t, {
    onRequest: (request, socket) => (answers ? answerZeroes(request, socket, true) : socket.destroy()),
  });
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  answers = true;
  await disk.read(0, 512);
  assert.equal(server.connections, 2);
});

test('a server that is gone, then back: requests fail in between and succeed after', async (t) => {
  const { server, disk } = await start(t, {});
  await disk.read(0, 512);
  await server.stop();
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await server.restart();
  await sleep(150);
  await disk.read(0, 512);
});

test('a server that takes connections and answers nothing is given up after the delay', async (t) => {
  const { server, disk } = await start(
    t,
    { onRequest: (_request, socket) => socket.destroy() },
    { reconnectDelay: 1 },
  );
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  assert.ok(server.connections >= 2 && server.connections < 20, `${server.connections} connections`);
});

test('an export that has become smaller is not the one that was opened', async (t) => {
  const script = { size };
  const { server, disk } = await start(t, {}, { reconnectDelay: 1 });
  await disk.read(0, 512);
  await server.stop();
  const smaller = new ScriptedServer({ ...script, size: size / 2 });
  await smaller.listenAt(server.address.path);
  t.after(() => smaller.stop());
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  assert.equal(smaller.requests.length, 0);
});

test('a server that says it is shutting down is waited for', async (t) => {
  let shuttingDown = true;
  const { disk } = await start(
    t,
    {
      onRequest: (request, socket) => {
        if (shuttingDown) {
          socket.write(errorChunk(request, NbdErrno.ESHUTDOWN, 'bye'));
          shuttingDown = false;
        } else {
          answerZeroes(request, socket, true);
        }
      },
    },
    { reconnectDelay: 10 },
  );
  await disk.read(0, 512);
});

test('open-timeout waits for a server that is not there yet', async (t) => {
  const server = new ScriptedServer({ size });
  await server.listen(folder);
  await server.stop();
  await assert.rejects(NbdDisk.open({ server: server.address }), {
    code: 'SYSTEM_CALL',
    message: /ENOENT|ECONNREFUSED/,
    hint: /that the server runs\.$/,
  });
  const opening = NbdDisk.open({ server: server.address, openTimeout: 10 });
  await sleep(300);
  await server.restart();
  t.after(() => server.stop());
  const disk = await opening;
  await disk.close();
});

test('an engine hands its connection to the next, and the end of the node ends it politely', async (t) => {
  const { server, disk } = await start(t, {});
  await disk.read(0, 512);
  for (let n = 0; n < 3; n++) {
    await disk.client.close(1000);
    const next = new EngineClient(disk.node);
    await next.request({ op: 0, offset: 0, length: 512, address: disk.memoryAddress });
    await next.close(1000);
    Object.assign(disk, { client: new EngineClient(disk.node) });
  }
  assert.equal(server.connections, 1);
  await disk.close();
  await until('the end of the connection', () => server.sockets.size === 0);
});

test('several engines have a connection each where the server allows that, and share one where not', async (t) => {
  for (const [flags, connections] of [
    [allFlags, 3],
    [allFlags & ~(1 << 8), 1],
  ]) {
    const { server, disk } = await start(t, { flags });
    const others = [new EngineClient(disk.node), new EngineClient(disk.node)];
    await Promise.all(
      [disk.client, ...others].flatMap((client, n) =>
        Array.from({ length: 20 }, (_, at) =>
          client.request({
            op: 0,
            offset: at * 512,
            length: 512,
            address: disk.memoryAddress + (n * 20 + at) * 512,
          }),
        ),
      ),
    );
    assert.equal(server.connections, connections);
    for (const other of others) {
      await other.close(1000);
    }
    await disk.close();
  }
});

test('nothing is left open', async (t) => {
  const before = openFdCount();
  const script: ScriptedOptions = { size, onRequest: (_request, socket) => socket.destroy() };
  const server = await new ScriptedServer(script).listen(folder);
  t.after(() => server.stop());
  const disk = await NbdDisk.open({ server: server.address, reconnectDelay: 30 });
  const read = assert.rejects(disk.read(0, 512), { errnoName: 'ECANCELED' });
  await sleep(250);
  await disk.client.close(10);
  await read;
  await disk.node.close();
  await server.stop();
  await until('descriptors to be closed', () => openFdCount() <= before);
});
