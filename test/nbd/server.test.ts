/** Addresses, exports that are refused, and clients that break the protocol. */
import assert from 'node:assert/strict';
import { existsSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { NbdBlockSizes } from '../../src/nbd/nbd-export.js';
import { NbdServer } from '../../src/nbd/nbd-server.js';
import { makeTempDir } from '../support/temp-dir.js';
import { MemoryExport } from './memory-export.js';
import { startServer } from './nbd-test-server.js';
import { encodeRequest, RawClient } from './raw-client.js';

const READ = 0;
const WRITE = 1;
const size = 1 << 20;

describe('NBD addresses', () => {
  const dir = makeTempDir();

  test('a Unix socket is for its user only, and gone after close', async () => {
    const path = join(dir, 'own.sock');
    const server = new NbdServer();
    await server.listen({ type: 'unix', path });
    assert.equal(statSync(path).mode & 0o777, 0o600);
    await server.close();
    assert.equal(existsSync(path), false);
  });

  test('a socket that a dead process left is replaced; a live one and a file are not', async (t) => {
    const path = join(dir, 'left.sock');
    // Closing a listener removes its file, but not under another name.
    const old = createServer().listen(`${path}.old`);
    renameSync(`${path}.old`, path);
    await new Promise<void>((report) => old.close(() => report()));
    const server = new NbdServer();
    t.after(() => server.close());
    await server.listen({ type: 'unix', path });
    const second = new NbdServer();
    await assert.rejects(second.listen({ type: 'unix', path }), { code: 'BUSY' });
    const file = join(dir, 'file');
    writeFileSync(file, 'precious');
    await assert.rejects(second.listen({ type: 'unix', path: file }), {
      code: 'ALREADY_EXISTS',
      message: `NBD server at ${file}: it exists and is not a socket`,
    });
    assert.equal(existsSync(file), true);
    await second.close();
  });

  test('what cannot be listened on is told', async () => {
    const server = new NbdServer();
    const absent = join(dir, 'absent', 'nbd.sock');
    await assert.rejects(server.listen({ type: 'unix', path: absent }), {
      code: 'SYSTEM_CALL',
      message: `NBD server at ${absent}: no such file or directory`,
      hint: `Make its directory: mkdir -p ${join(dir, 'absent')}`,
    });
    const bound = await server.listen({ type: 'tcp', port: 0 });
    const port = bound.type === 'tcp' ? bound.port : assert.fail('it is no port');
    const other = new NbdServer();
    await assert.rejects(other.listen({ type: 'tcp', port }), {
      message: `NBD server at 127.0.0.1:${port}: address already in use`,
      hint: /^Choose another port, .*`ss -ltnp sport = :\d+` names it\.$/,
    });
    await other.close();
    await assert.rejects(server.listen({ type: 'unix', path: join(dir, 'x'.repeat(108)) }), {
      code: 'INVALID_ARGUMENT',
      hint: /shorter/,
    });
    await assert.rejects(server.listen({ type: 'tcp', port: 1, host: '192.0.2.1' }), { code: 'SYSTEM_CALL' });
    await server.close();
  });

  test('TCP is for this machine, unless another host is asked for', async (t) => {
    const server = new NbdServer();
    t.after(() => server.close());
    server.addExport({ name: '', target: new MemoryExport({ size }) });
    const address = await server.listen({ type: 'tcp', port: 0 });
    assert.ok(address.type === 'tcp' && address.port > 0);
    assert.equal(address.host, '127.0.0.1');
    const client = await RawClient.open(address, { structured: true });
    t.after(() => client.close());
    assert.equal((await client.call({ type: READ, length: 1 << 20 })).data.length, 1 << 20);
    const second = await server.listen({ type: 'tcp', port: 0, host: '127.0.0.2' });
    const other = await RawClient.open(second);
    t.after(() => other.close());
    assert.equal((await other.call({ type: READ, length: 1 })).errno, 0);
  });
});

describe('NBD exports', () => {
  const add = (name: string, blockSizes: Partial<NbdBlockSizes> = {}, bytes = size): void =>
    new NbdServer().addExport({ name, target: new MemoryExport({ size: bytes, blockSizes }) });

  test('names and sizes that the protocol cannot carry are refused', () => {
    add('x'.repeat(4096));
    add('', { minimum: 65536, preferred: 65536, maximum: 65536 });
    add('', { minimum: 512, preferred: 512, maximum: 1536 });
    const invalid = { code: 'INVALID_ARGUMENT' };
    assert.throws(() => add('x'.repeat(4097)), invalid);
    assert.throws(() => add('ü'.repeat(2049)), invalid);
    assert.throws(() => add('\0'), invalid);
    assert.throws(() => add('\ud800'), invalid);
    for (const blockSizes of [
      { minimum: 0 },
      { minimum: 3 },
      { minimum: 0.5 },
      { minimum: 131072, preferred: 131072 },
      { preferred: 256 },
      { preferred: 5000 },
      { minimum: 8192, preferred: 4096 },
      { maximum: 2048 },
      { maximum: (32 << 20) + 1 },
      { minimum: 512, maximum: 8192 + 256 },
    ]) {
      assert.throws(() => add('', blockSizes), invalid, JSON.stringify(blockSizes));
    }
    assert.throws(() => add('', { minimum: 4096 }, size + 512), /size 1049088: must be a multiple/);
  });

  test('the size is that of the moment when the client connects', async (t) => {
    const dir = makeTempDir();
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const before = await open();
    t.mock.getter(target, 'size', () => 4096);
    const after = await open();
    assert.deepEqual([before.size, after.size], [size, 4096]);
    assert.equal((await before.call({ type: READ, offset: 4096, length: 1 })).errno, 0);
    assert.equal((await after.call({ type: READ, offset: 4096, length: 1 })).errno, 22);
  });
});

describe('NBD clients that break the protocol', () => {
  const dir = makeTempDir();

  test('a request without its magic number ends the connection, after what is under way', async (t) => {
    const target = new MemoryExport({ size, isAsync: true });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    client.request({ type: READ, length: 512 });
    client.send(encodeRequest({ type: READ, length: 512, magic: 0x12560953 }));
    client.send(encodeRequest({ type: READ, length: 512 }));
    assert.equal((await client.outcome()).errno, 0);
    assert.equal((await client.readToEnd()).length, 0);
    assert.equal(target.calls.length, 1);
    target.assertBalanced();
  });

  test('an option without its magic number ends the connection', async (t) => {
    const { connect } = await startServer(t, dir);
    const client = await connect();
    await client.greet();
    client.send(Buffer.alloc(16));
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('a payload of more than 32 MiB is refused and ends the connection; 32 MiB are taken', async (t) => {
    const target = new MemoryExport({ size: 40 << 20 });
    const { open } = await startServer(t, dir, { target });
    const client = await open({ structured: true });
    const data = Buffer.alloc(32 << 20, 7);
    assert.equal((await client.call({ type: WRITE, offset: 4096, data })).errno, 0);
    assert.equal(target.bytes[4096 + (32 << 20) - 1], 7);
    assert.equal((await client.call({ type: READ, length: 32 << 20 })).data.length, 32 << 20);
    const outcome = await client.call({ type: WRITE, length: 0xffff_ffff });
    assert.equal(outcome.errno, 28);
    assert.equal((await client.readToEnd()).length, 0);
    target.assertBalanced();
  });

  test('options that are too long, or too many, end the connection', async (t) => {
    const { connect } = await startServer(t, dir);
    const long = await connect();
    await long.greet();
    long.sendOption(4711, Buffer.alloc(0), 0xffff_ffff);
    assert.equal((await long.readToEnd()).length, 0);
    const name = await connect();
    await name.greet();
    name.sendOption(1, Buffer.alloc(0), 100_000);
    assert.equal((await name.readToEnd()).length, 0);
    const many = await connect();
    await many.greet();
    for (let n = 0; n < 513; n++) {
      many.sendOption(3);
    }
    assert.equal((await many.readToEnd()).length, 512 * 20);
  });

  test('a client that lists and never reads is not listened to for ever', async (t) => {
    const { server, connect } = await startServer(t, dir, { limits: { handshakeTimeoutMs: 300 } });
    for (let n = 0; n < 200; n++) {
      server.addExport({ name: `${n}`.padEnd(4000, 'x'), target: new MemoryExport({ size: 4096 }) });
    }
    const client = await connect();
    await client.greet();
    client.socket.pause();
    for (let n = 0; n < 500; n++) {
      client.sendOption(3);
    }
    const before = process.memoryUsage().external;
    await new Promise((resume) => setTimeout(resume, 100));
    assert.ok(process.memoryUsage().external - before < 64 << 20, 'replies are not piled up');
    client.socket.resume();
    await client.readToEnd();
  });
});
