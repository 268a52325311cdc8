/** A server that is reached by a descriptor which the process was started with (SocketAddress fd). */
import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { BlockOp } from '../../../src/block/engine.js';
import { EngineClient } from '../../../src/block/engine-client.js';
import { toNbdNodeOptions } from '../../../src/daemon/options/nbd-blockdev-options.js';
import { closeFd } from '../../../src/native/fd.js';
import { connectUnix, socketPair, UnixListener } from '../../../src/native/unix-socket.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import { recordingLogger } from '../../support/recording-logger.js';
import { openFdCount } from '../../support/resources.js';
import { ScriptedServer } from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const folder = makeTempDir();

async function start(t: TestContext): Promise<{ server: ScriptedServer; fd: number }> {
  const server = await new ScriptedServer().listen(folder);
  t.after(() => server.stop());
  const fd = connectUnix(server.address.path);
  t.after(() => closeFd(fd));
  return { server, fd };
}

test('the descriptor is the connection, and its number stays taken', async (t) => {
  const { server, fd } = await start(t);
  const before = openFdCount();
  const disk = await NbdDisk.open({ server: { type: 'fd', fd } });
  assert.equal((await disk.read(0, 4096)).length, 4096);
  assert.equal(server.connections, 1);
  assert.equal(disk.node.filename, undefined);
  await disk.close();
  await until('the end of the connection', () => server.sockets.size === 0);
  assert.ok(fstatSync(fd).isSocket(), 'it is still open');
  assert.ok(openFdCount() <= before);
  // The socket has been shut down: its number does not stand for anything else meanwhile.
  await assert.rejects(NbdDisk.open({ server: { type: 'fd', fd } }), {
    code: 'PROTOCOL',
    message: `cannot open 'nbd+fd://${fd}': the NBD server closed the connection during the handshake`,
  });
});

test('a connection that breaks is not made again', async (t) => {
  const { server, fd } = await start(t);
  const { logger, lines } = recordingLogger();
  const disk = await NbdDisk.open({ server: { type: 'fd', fd }, reconnectDelay: 60 }, { logger });
  t.after(() => disk.close());
  await disk.read(0, 512);
  server.dropAll();
  await until('the line', () => lines.length > 0);
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  assert.match(lines[0], /its descriptor was handed over, so nobody can connect again/);
});

test('nobody waits for a connection that was given up for its requests', async (t) => {
  const server = await new ScriptedServer({ onRequest: () => undefined }).listen(folder);
  t.after(() => server.stop());
  const fd = connectUnix(server.address.path);
  t.after(() => closeFd(fd));
  const disk = await NbdDisk.open({ server: { type: 'fd', fd } });
  t.after(() => disk.close());
  const first = new EngineClient(disk.node);
  const request = { op: BlockOp.READ, offset: 0, length: 512, address: disk.memoryAddress };
  const read = assert.rejects(first.request(request), { errnoName: 'ECANCELED' });
  await until('the request at the server', () => server.requests.length === 1);
  // The server knows of the request, so that its end costs the connection.
  await first.close(1);
  await read;
  const startMs = performance.now();
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  assert.ok(performance.now() - startMs < 5000);
});

test('what is no connection is refused, with words', async (t) => {
  const file = openSync(join(folder, 'file'), 'w');
  t.after(() => closeSync(file));
  const listener = new UnixListener(join(folder, 'listener.sock'));
  t.after(() => listener.close());
  const cases: readonly [number, RegExp][] = [
    [file, /File descriptor '\d+' is not a socket$/],
    [listener.fd, /is not a connection/],
    [0x7fff_fff0, /File descriptor '2147483632' is not open$/],
  ];
  for (const [fd, message] of cases) {
    await assert.rejects(NbdDisk.open({ server: { type: 'fd', fd }, openTimeout: 60 }), {
      code: 'INVALID_ARGUMENT',
      message,
    });
  }
});

test('a socket behind which there is no NBD server', async () => {
  const [fd, other] = socketPair();
  closeFd(other);
  await assert.rejects(NbdDisk.open({ server: { type: 'fd', fd }, openTimeout: 60 }), { code: 'PROTOCOL' });
  closeFd(fd);
});

test('the option is a number: names come from getfd, which there is not', () => {
  const options = (str: string) => ({ driver: 'nbd' as const, server: { type: 'fd' as const, str } });
  assert.deepEqual(toNbdNodeOptions(options('7')).server, { type: 'fd', fd: 7 });
  assert.throws(() => toNbdNodeOptions(options('server')), {
    message: "file descriptor named 'server' has not been found",
  });
  assert.throws(() => toNbdNodeOptions(options('1')), { code: 'INVALID_ARGUMENT' });
});
