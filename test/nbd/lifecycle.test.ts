/** Clients that come, go, stall and ask for too much, and what the export gets back in each case. */
import assert from 'node:assert/strict';
import { describe, type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { openFdCount } from '../support/resources.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';
import { MemoryExport } from './memory-export.js';
import { startServer } from './nbd-test-server.js';
import { encodeRequest, exportQuery, RawClient } from './raw-client.js';

const READ = 0;
const WRITE = 1;
const DISC = 2;
const size = 64 << 20;

/** A gate that every call of the export waits at. */
function close(target: MemoryExport): () => void {
  let open: () => void = () => undefined;
  target.gate = new Promise((report) => {
    open = report;
  });
  return () => {
    target.gate = undefined;
    open();
  };
}

/** The server's timer ticks when it is told to. */
function mockTicks(t: TestContext): (ms: number) => void {
  t.mock.timers.enable({ apis: ['setInterval'] });
  return (ms) => t.mock.timers.tick(ms);
}

describe('NBD clients come and go', () => {
  const dir = makeTempDir();

  test('a client that vanishes in the middle of a long payload: its memory is given back, unwritten', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target });
    for (const part of [28, 29, 5000, 200_000, (1 << 20) + 27]) {
      const client = await open();
      const prepared = target.counts.prepared;
      const request = encodeRequest({ type: WRITE, data: Buffer.alloc(1 << 20, 1) });
      client.send(request.subarray(0, part));
      await until('the payload has a place', () => target.counts.prepared > prepared);
      client.close();
      await until('the client is forgotten', () => server.clientCount() === 0);
    }
    assert.deepEqual(target.counts, { lent: 0, released: 0, prepared: 5, submitted: 0, cancelled: 5 });
    assert.equal(target.bytes.indexOf(1), -1);
  });

  test('a client that vanishes with requests in flight: everything is given back, once', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target });
    const client = await open();
    const openGate = close(target);
    for (let n = 0; n < 4; n++) {
      client.request({ type: READ, offset: n * 65536, length: 65536 });
    }
    client.request({ type: WRITE, data: Buffer.alloc(4096) });
    await until('the export has the requests', () => target.calls.length === 5);
    client.close();
    await delay(20);
    assert.equal(server.clientCount(), 1, 'it counts until the export has everything back');
    openGate();
    await until('the client is forgotten', () => server.clientCount() === 0);
    // The write had come in full, so it is carried out.
    assert.deepEqual(target.counts, { lent: 4, released: 4, prepared: 1, submitted: 1, cancelled: 0 });
  });

  test('half a payload, and then the end: the write is cancelled', async (t) => {
    for (const ends of ['destroy', 'end']) {
      const target = new MemoryExport({ size });
      const { server, open } = await startServer(t, dir, { target });
      const client = await open();
      client.send(encodeRequest({ type: WRITE, length: 4096, data: Buffer.alloc(1000) }));
      await until('the write is prepared', () => target.counts.prepared === 1);
      if (ends === 'end') {
        client.socket.end();
      } else {
        client.close();
      }
      await until('the client is forgotten', () => server.clientCount() === 0);
      assert.deepEqual(target.counts, { lent: 0, released: 0, prepared: 1, submitted: 0, cancelled: 1 });
    }
  });

  test('large replies that nobody reads are given back when the client goes', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target });
    const client = await open();
    client.socket.pause();
    for (let n = 0; n < 8; n++) {
      client.request({ type: READ, offset: n << 20, length: 1 << 20 });
    }
    await until('reads are lent', () => target.counts.lent > 1);
    assert.ok(target.counts.released < target.counts.lent);
    client.close();
    await until('the client is forgotten', () => server.clientCount() === 0);
    target.assertBalanced();
  });

  test('NBD_CMD_DISC waits for what is under way, and then closes', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    const openGate = close(target);
    client.request({ type: READ, length: 512 });
    client.request({ type: DISC });
    client.request({ type: READ, length: 512 });
    await until('the export has the first', () => target.calls.length === 1);
    await delay(10);
    openGate();
    assert.equal((await client.outcome()).errno, 0);
    assert.equal((await client.readToEnd()).length, 0);
    assert.equal(target.calls.length, 1, 'nothing after DISC counts');
  });

  test('NBD_CMD_DISC waits for replies that are not read yet', async (t) => {
    const { open } = await startServer(t, dir, { target: new MemoryExport({ size }) });
    const client = await open();
    client.socket.pause();
    client.request({ type: READ, length: 8 << 20 });
    client.request({ type: DISC });
    await delay(20);
    client.socket.resume();
    assert.equal((await client.outcome()).data.length, 8 << 20);
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('a client that ends its side still gets its replies', async (t) => {
    const target = new MemoryExport({ size, isAsync: true });
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    client.request({ type: WRITE, data: Buffer.from('end') });
    client.request({ type: READ, length: 1 << 20 });
    client.socket.end();
    const outcomes = [await client.outcome(), await client.outcome()];
    assert.ok(outcomes.every((outcome) => outcome.errno === 0));
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('requests of one client wait beyond requestsMax, and all are answered', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target, limits: { requestsMax: 4 } });
    const client = await open();
    const other = await open();
    const openGate = close(target);
    for (let n = 0; n < 20; n++) {
      client.request({ type: READ, offset: n * 512, length: 512 });
    }
    await until('four are started', () => target.calls.length === 4);
    await delay(20);
    assert.equal(target.calls.length, 4);
    other.request({ type: READ, length: 512 });
    await until('another client is not held back', () => target.calls.length === 5);
    openGate();
    assert.equal((await other.outcome()).errno, 0);
    for (let n = 0; n < 20; n++) {
      assert.equal((await client.outcome()).errno, 0);
    }
    target.assertBalanced();
  });

  test('payload beyond requestBytesMax waits, but one request always passes', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target, limits: { requestBytesMax: 1 << 20 } });
    const client = await open();
    const openGate = close(target);
    client.request({ type: READ, length: 4 << 20 });
    client.request({ type: READ, length: 512 });
    await until('the long one is started', () => target.calls.length === 1);
    await delay(20);
    assert.equal(target.calls.length, 1);
    openGate();
    assert.equal((await client.outcome()).data.length, 4 << 20);
    assert.equal((await client.outcome()).data.length, 512);
  });

  test('replies that are not read count as payload, too', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target, limits: { requestBytesMax: 1 << 20 } });
    const client = await open();
    client.socket.pause();
    for (let n = 0; n < 3; n++) {
      client.request({ type: READ, length: 1 << 20 });
    }
    await until('one is started', () => target.calls.length > 0);
    await delay(20);
    assert.equal(target.calls.length, 1);
    client.socket.resume();
    for (let n = 0; n < 3; n++) {
      assert.equal((await client.outcome()).errno, 0);
    }
  });

  test('many small replies to a client that reads now and then: each byte is its own', async (t) => {
    const target = new MemoryExport({ size });
    const blocks = 2000;
    const words = new Uint32Array(target.bytes.buffer);
    for (let n = 0; n < blocks; n++) {
      words.fill(n * 2654435761, n * 1024, (n + 1) * 1024);
    }
    const { open } = await startServer(t, dir, { target });
    const client = await open();
    for (let n = 0; n < blocks; n++) {
      client.request({ type: READ, offset: n * 4096, length: 4096 });
      if (n % 100 === 0) {
        client.socket[n % 200 === 0 ? 'pause' : 'resume']();
        await delay(1);
      }
    }
    client.socket.resume();
    for (let n = 0; n < blocks; n++) {
      const { data } = await client.outcome();
      assert.ok(data.equals(target.bytes.subarray(n * 4096, (n + 1) * 4096)), `block ${n}`);
    }
    target.assertBalanced();
  });

  test('a client that reads nothing is served no further, and costs others nothing', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const greedy = await open();
    greedy.socket.pause();
    for (let n = 0; n < 60; n++) {
      greedy.request({ type: READ, length: 1 << 20 });
    }
    await until('some are started', () => target.calls.length >= 4);
    await delay(50);
    const started = target.calls.length;
    assert.ok(started < 20, `${started} of 60 were started for somebody who reads nothing`);
    const other = await open();
    assert.equal((await other.call({ type: READ, length: 512 })).errno, 0);
    greedy.socket.resume();
    for (let n = 0; n < 60; n++) {
      assert.equal((await greedy.outcome()).errno, 0);
    }
    target.assertBalanced();
  });

  test('error replies that nobody reads are bounded too', async (t) => {
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target });
    const client = await open({ structured: true });
    client.socket.pause();
    const bad = Buffer.concat(Array.from({ length: 1000 }, () => encodeRequest({ type: 99 })));
    let isTaken = true;
    for (let n = 0; n < 400 && isTaken; n++) {
      isTaken = await Promise.race([
        new Promise<boolean>((report) => client.socket.write(bad, () => report(true))),
        delay(500, false, { ref: false }),
      ]);
    }
    assert.equal(isTaken, false, 'the server stops reading');
  });

  test('memory for a payload may come late: the client waits', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target });
    const client = await open();
    const openGate = close(target);
    const data = Buffer.from('late');
    client.request({ type: WRITE, offset: 100, data });
    client.request({ type: READ, offset: 100, length: 4 });
    await until('memory is asked for', () => target.calls.length === 1);
    await delay(10);
    assert.equal(target.calls.length, 1);
    openGate();
    assert.equal((await client.outcome()).errno, 0);
    assert.ok((await client.outcome()).data.equals(data));
    // And one that goes away while it waits.
    const reopenGate = close(target);
    client.request({ type: WRITE, data });
    await until('memory is asked for again', () => target.count('prepareWrite') === 2);
    client.close();
    await delay(10);
    reopenGate();
    await until('the client is forgotten', () => server.clientCount() === 0);
    target.assertBalanced();
  });

  test('half a request and then nothing: dropped after the stall timeout, others stay', async (t) => {
    const pass = mockTicks(t);
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target, limits: { stallTimeoutMs: 400 } });
    const idle = await open();
    const halfHeader = await open();
    halfHeader.send(encodeRequest({ type: READ }).subarray(0, 10));
    const halfPayload = await open();
    halfPayload.send(encodeRequest({ type: WRITE, length: 512 }));
    const halfSkipped = await open();
    halfSkipped.send(encodeRequest({ type: WRITE, length: 512, offset: size }));
    assert.equal((await halfSkipped.read(16)).readUInt32BE(4), 28);
    await until('the write is prepared', () => target.counts.prepared === 1);
    pass(400);
    await delay(5);
    assert.equal(server.clientCount(), 4, 'not yet');
    await until('only the idle one is left', () => {
      pass(100);
      return server.clientCount() === 1;
    });
    assert.equal((await idle.call({ type: READ, length: 512 })).errno, 0);
    target.assertBalanced();
  });

  test('a slow export is no stall of the client', async (t) => {
    const pass = mockTicks(t);
    const target = new MemoryExport({ size });
    const limits = { stallTimeoutMs: 400, requestsMax: 1 };
    const { open } = await startServer(t, dir, { target, limits });
    const client = await open();
    const openGate = close(target);
    client.request({ type: READ, length: 512 });
    client.request({ type: WRITE, data: Buffer.alloc(512) });
    // The rest of this one waits behind the others, where nobody looks at it.
    const next = encodeRequest({ type: READ, length: 512, cookie: 99n });
    client.send(next.subarray(0, 20));
    await until('the export has the first', () => target.calls.length === 1);
    pass(4000);
    await delay(5);
    openGate();
    assert.equal((await client.outcome()).errno, 0);
    assert.equal((await client.outcome()).errno, 0);
    pass(200);
    client.expect({ type: READ, length: 512, cookie: 99n });
    client.send(next.subarray(20));
    assert.equal((await client.outcome()).errno, 0);
  });

  test('replies that are not read: dropped after the stall timeout', async (t) => {
    const pass = mockTicks(t);
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target, limits: { stallTimeoutMs: 400 } });
    const client = await open();
    client.socket.pause();
    client.request({ type: READ, length: 8 << 20 });
    await until('the read is lent', () => target.counts.lent === 1);
    pass(400);
    await delay(5);
    assert.equal(server.clientCount(), 1, 'not yet');
    await until('the client is dropped', () => {
      pass(100);
      return server.clientCount() === 0;
    });
    target.assertBalanced();
  });

  test('a client that reads slowly is not dropped', async (t) => {
    const pass = mockTicks(t);
    const target = new MemoryExport({ size });
    const { open } = await startServer(t, dir, { target, limits: { stallTimeoutMs: 400 } });
    const client = await open();
    const openGate = close(target);
    const last = encodeRequest({ type: READ, length: 512, cookie: 99n });
    client.request({ type: READ, length: 8 << 20 });
    client.send(last.subarray(0, 10));
    await until('the export has the first', () => target.calls.length === 1);
    client.socket.pause();
    openGate();
    await until('it is lent', () => target.counts.lent === 1);
    // What completes the second request is not looked at before most of the first one's data is read.
    client.expect({ type: READ, length: 512, cookie: 99n });
    client.send(last.subarray(10));
    await delay(5);
    // Whoever has a MiB and a quarter more has seen the end of one write and the start of the next.
    for (let n = 0; n < 6; n++) {
      client.socket.resume();
      await client.read(5 << 18);
      client.socket.pause();
      await delay(1);
      pass(300);
    }
    client.socket.resume();
    await client.read(16 + (8 << 20) - 6 * (5 << 18));
    assert.equal((await client.outcome()).cookie, 99n);
  });

  test('a handshake that goes nowhere ends at its timeout', async (t) => {
    const pass = mockTicks(t);
    const { server, connect } = await startServer(t, dir, { limits: { handshakeTimeoutMs: 400 } });
    const silent = await connect();
    const talking = await connect();
    await talking.greet();
    await talking.option(3);
    pass(400);
    assert.equal((await talking.option(3)).length, 1, 'not yet');
    await until('the server forgets them', () => {
      pass(100);
      return server.clientCount() === 0;
    });
    assert.equal((await silent.readToEnd()).length, 18);
    await talking.readToEnd();
  });

  test('one client too many: whoever has not chosen an export goes first', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open, connect } = await startServer(t, dir, { target, limits: { connectionsMax: 2 } });
    const first = await open();
    const loiterer = await connect();
    const second = await open();
    assert.equal((await loiterer.readToEnd()).length, 18);
    const third = await connect();
    assert.equal((await third.readToEnd()).length, 0);
    assert.equal(server.clientCount(''), 2);
    for (const client of [first, second]) {
      assert.equal((await client.call({ type: READ, length: 512 })).errno, 0);
    }
  });

  test('many clients too many at once: no more stay than may', async (t) => {
    const { server, connect } = await startServer(t, dir, { limits: { connectionsMax: 2 } });
    await Promise.all(Array.from({ length: 8 }, () => connect()));
    await until('two are left', () => server.clientCount() === 2);
  });

  test('close() answers what is under way, refuses what comes, and gives everything back', async (t) => {
    const before = openFdCount();
    const target = new MemoryExport({ size });
    const { server, open, connect } = await startServer(t, dir, { target });
    const client = await open();
    const negotiating = await connect();
    await negotiating.greet();
    const openGate = close(target);
    const read = client.request({ type: READ, length: 512 });
    await until('the export has it', () => target.calls.length === 1);
    const closed = server.close();
    assert.equal(server.close(), closed);
    const late = client.request({ type: READ, length: 512 });
    const refused = await client.outcome();
    assert.deepEqual([refused.cookie, refused.errno], [late, 108]);
    openGate();
    const answered = await client.outcome();
    assert.deepEqual([answered.cookie, answered.errno], [read, 0]);
    await closed;
    assert.equal(server.clientCount(), 0);
    await client.readToEnd();
    await negotiating.readToEnd();
    client.close();
    negotiating.close();
    target.assertBalanced();
    await until('no descriptor is left', () => openFdCount() <= before);
    await assert.rejects(server.listen({ type: 'tcp', port: 0 }), { code: 'ABORTED' });
  });

  test('close() drops clients whose requests take too long, and still waits for the export', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open } = await startServer(t, dir, { target, limits: { closeTimeoutMs: 30 } });
    const client = await open();
    const openGate = close(target);
    client.request({ type: READ, length: 512 });
    await until('the export has it', () => target.calls.length === 1);
    let isClosed = false;
    const closed = server.close().then(() => {
      isClosed = true;
    });
    await client.readToEnd();
    await delay(20);
    assert.equal(isClosed, false, 'the export still has a request');
    openGate();
    await closed;
    target.assertBalanced();
  });

  test('close() while a write waits for memory: the memory that comes is given back', async (t) => {
    for (const lateMs of [0, 20]) {
      const target = new MemoryExport({ size });
      const { server, open } = await startServer(t, dir, { target, limits: { closeTimeoutMs: 30 } });
      const client = await open();
      const openGate = close(target);
      client.request({ type: WRITE, data: Buffer.alloc(4096) });
      await until('memory is asked for', () => target.calls.length === 1);
      const closed = server.close();
      await client.readToEnd();
      // At first between the end of the socket and its last event, then after both.
      await delay(lateMs);
      openGate();
      await closed;
      assert.deepEqual(target.counts, { lent: 0, released: 0, prepared: 1, submitted: 0, cancelled: 1 });
    }
  });

  test('an export is removed with its clients; the others stay', async (t) => {
    const target = new MemoryExport({ size });
    const { server, open, connect } = await startServer(t, dir, { target });
    server.addExport({ name: 'other', target: new MemoryExport({ size }) });
    assert.throws(() => server.addExport({ name: 'other', target }), { code: 'ALREADY_EXISTS' });
    const client = await open({ name: 'other' });
    const stays = await open();
    assert.deepEqual([server.clientCount('other'), server.clientCount('')], [1, 1]);
    assert.equal(server.clientCount('absent'), 0);
    await server.removeExport('other');
    await assert.rejects(server.removeExport('other'), { code: 'NOT_FOUND' });
    assert.equal((await client.readToEnd()).length, 0);
    assert.equal((await stays.call({ type: READ, length: 512 })).errno, 0);
    const late = await connect();
    await late.greet();
    assert.equal((await late.option(7, exportQuery('other')))[0].type, 0x8000_0006);
  });

  test('two clients share an export', async (t) => {
    const target = new MemoryExport({ size, isAsync: true });
    const { address } = await startServer(t, dir, { target });
    const [one, two] = await Promise.all([RawClient.open(address), RawClient.open(address)]);
    t.after(() => {
      one.close();
      two.close();
    });
    const data = Buffer.from('shared');
    assert.equal((await one.call({ type: WRITE, offset: 4096, data })).errno, 0);
    assert.equal((await one.call({ type: 3 })).errno, 0);
    assert.ok((await two.call({ type: READ, offset: 4096, length: 6 })).data.equals(data));
  });
});
