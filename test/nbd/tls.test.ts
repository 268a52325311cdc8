/** The NBD server with TLS, by pre-shared keys. Certificates are in test/clients/nbd-server-tls.test.ts. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { describe, type TestContext, test } from 'node:test';
import { type ConnectionOptions, connect as connectTls } from 'node:tls';
import { TlsCredentials } from '../../src/base/tls-credentials.js';
import type { NbdClientLimits } from '../../src/nbd/nbd-limits.js';
import { NbdServer } from '../../src/nbd/nbd-server.js';
import { distinguishedName } from '../../src/nbd/peer-name.js';
import { Random } from '../support/random.js';
import { recordingLogger } from '../support/recording-logger.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';
import { MemoryExport } from './memory-export.js';
import { startServer, type TestServer } from './nbd-test-server.js';
import { exportQuery, RawClient } from './raw-client.js';

const STARTTLS = 5;
const key = Buffer.alloc(32, 7);
const keys = (username: string, secret: Buffer) => ({ keys: new Map([[username, secret]]), username });
const server = new TlsCredentials({ endpoint: 'server', verifyPeer: true, psk: keys('alice', key) });
const alice = new TlsCredentials({ endpoint: 'client', verifyPeer: true, psk: keys('alice', key) });

describe('NBD server with TLS', () => {
  const dir = makeTempDir();

  function start(
    t: TestContext,
    limits: Partial<NbdClientLimits> = {},
  ): Promise<TestServer & { lines: string[] }> {
    const { logger, lines } = recordingLogger();
    const target = new MemoryExport({ size: 8 << 20 });
    return startServer(t, dir, { target, limits, logger, tls: { credentials: server } }).then((started) => ({
      ...started,
      lines,
    }));
  }

  /** A client that has done its part of the TLS handshake. */
  async function secure(
    plain: RawClient,
    credentials = alice,
    more: ConnectionOptions = {},
  ): Promise<RawClient> {
    const [answer] = await plain.option(STARTTLS);
    assert.equal(answer.type, 1);
    const socket = connectTls({ socket: plain.socket, ...credentials.clientOptions(undefined), ...more });
    await once(socket, 'secureConnect');
    return new RawClient(socket);
  }

  test('before TLS nothing is told but that it is required', async (t) => {
    const { connect } = await start(t);
    const client = await connect();
    assert.equal(await client.greet(), 3);
    for (const option of [3, 6, 7, 8, 9, 10]) {
      const [answer] = await client.option(option, option === 3 ? undefined : exportQuery(''));
      assert.deepEqual(answer, { type: 0x8000_0005, data: Buffer.alloc(0) });
    }
    client.sendOption(1);
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('with TLS: options, a second STARTTLS, and data both ways', async (t) => {
    const { connect } = await start(t);
    const plain = await connect();
    await plain.greet();
    // What was agreed on without TLS does not count: a structured reply would fail the client below.
    assert.equal((await plain.option(8))[0].type, 0x8000_0005);
    const client = await secure(plain);
    assert.equal((await client.option(STARTTLS))[0].type, 0x8000_0003);
    assert.equal((await client.option(3)).length, 2);
    await client.go();
    const data = Buffer.alloc(3 << 20, 'data');
    assert.equal((await client.call({ type: 1, offset: 4096, data })).errno, 0);
    assert.ok((await client.call({ type: 0, offset: 4096, length: data.length })).data.equals(data));
    const cookies = Array.from({ length: 200 }, (_, n) =>
      client.request({ type: 1, offset: n * 16384, data: Buffer.alloc(16384, n) }),
    );
    const done = new Set<bigint>();
    while (done.size < cookies.length) {
      const { cookie, errno } = await client.outcome();
      assert.equal(errno, 0);
      done.add(cookie);
    }
    const read = await client.call({ type: 0, offset: 150 * 16384, length: 16384 });
    assert.ok(read.data.every((byte) => byte === 150));
  });

  test('requests that came before the end of the stream are answered', async (t) => {
    const { connect } = await start(t, { requestsMax: 2 });
    const plain = await connect();
    await plain.greet();
    const client = await secure(plain);
    await client.go();
    for (let n = 0; n < 64; n++) {
      client.request({ type: 1, offset: n * 65536, data: Buffer.alloc(65536, n) });
    }
    client.socket.end();
    for (let n = 0; n < 64; n++) {
      assert.equal((await client.outcome()).errno, 0);
    }
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('unencrypted bytes behind STARTTLS end the connection, unanswered', async (t) => {
    const { connect, lines } = await start(t);
    const client = await connect();
    await client.greet();
    const header = Buffer.alloc(16);
    header.write('IHAVEOPT');
    header.writeUInt32BE(STARTTLS, 8);
    const list = Buffer.from(header);
    list.writeUInt32BE(3, 8);
    client.send(header, list);
    assert.equal((await client.readToEnd()).length, 0);
    assert.ok(lines.some((line) => line.includes('unencrypted bytes after NBD_OPT_STARTTLS')));
  });

  test('unencrypted bytes in place of the handshake are not options', async (t) => {
    const { connect, lines } = await start(t);
    const client = await connect();
    await client.greet();
    assert.equal((await client.option(STARTTLS))[0].type, 1);
    client.sendOption(3);
    // An alert may come, and no reply to an option.
    assert.ok(!(await client.readToEnd()).includes(Buffer.of(0, 3, 0xe8, 0x89)));
    assert.ok(lines.some((line) => line.includes('dropped: TLS: ')));
  });

  test('another key, and a name that nobody has, are refused', async (t) => {
    const { connect, lines, server: nbd } = await start(t);
    for (const wrong of [keys('alice', Buffer.alloc(32, 8)), keys('mallory', key)]) {
      const plain = await connect();
      await plain.greet();
      const credentials = new TlsCredentials({ endpoint: 'client', verifyPeer: true, psk: wrong });
      await assert.rejects(secure(plain, credentials));
      await plain.readToEnd();
    }
    assert.equal(lines.filter((line) => line.includes('dropped: TLS: ')).length, 2);
    assert.ok(!lines.join().includes(key.toString('hex')));
    await until('the end of both', () => nbd.clientCount() === 0);
  });

  test('a client that does not come to the point is dropped, before STARTTLS and after', async (t) => {
    const { connect, lines } = await start(t, { handshakeTimeoutMs: 500 });
    const [silent, half, undecided] = [await connect(), await connect(), await connect()];
    await half.greet();
    assert.equal((await half.option(STARTTLS))[0].type, 1);
    await undecided.greet();
    const secured = await secure(undecided);
    for (const client of [silent, half, secured]) {
      await client.readToEnd();
    }
    for (const text of ['did not ask for TLS', 'finished no TLS handshake', 'chose no export']) {
      assert.ok(
        lines.some((line) => line.includes(text)),
        text,
      );
    }
  });

  test('a server that closes waits for nobody in the middle of a handshake', async (t) => {
    const { connect, server: nbd } = await start(t);
    const plain = await connect();
    await plain.greet();
    const half = await connect();
    await half.greet();
    assert.equal((await half.option(STARTTLS))[0].type, 1);
    const secured = await connect();
    await secured.greet();
    const client = await secure(secured);
    await client.go();
    await nbd.close();
    for (const one of [plain, half, client]) {
      await one.readToEnd();
    }
    assert.equal(nbd.clientCount(), 0);
  });

  test('noise before TLS, in its handshake and behind it harms nobody and leaves nothing open', async (t) => {
    const { connect, server: nbd } = await start(t);
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const open = descriptors();
    const random = new Random(4711);
    for (let n = 0; n < 40; n++) {
      const client = await connect();
      await client.greet();
      if (n % 4 > 0) {
        assert.equal((await client.option(STARTTLS))[0].type, 1);
      }
      const record = Buffer.of(22, 3, 1, 0, 100);
      const noise = Buffer.from(Array.from({ length: 1 + (n % 200) }, () => random.between(0, 255)));
      client.send(n % 4 === 2 ? Buffer.concat([record, noise]) : noise);
      if (n % 3 === 0) {
        client.socket.destroy();
      } else {
        client.socket.end();
        await client.readToEnd();
      }
    }
    await until('the end of all', () => nbd.clientCount() === 0);
    const client = await connect();
    await client.greet();
    const secured = await secure(client);
    await secured.go();
    assert.equal((await secured.call({ type: 0, length: 512 })).errno, 0);
    secured.close();
    await until('the end of the last', () => nbd.clientCount() === 0);
    await until('closed descriptors', () => descriptors() <= open);
  });

  test('credentials of a client, and authorization without certificates, are refused at once', () => {
    assert.throws(() => new NbdServer({ tls: { credentials: alice } }), {
      code: 'INVALID_ARGUMENT',
      message: 'Expected TLS credentials for a server endpoint',
    });
    assert.throws(() => new NbdServer({ tls: { credentials: server, authorize: () => true } }), {
      message: /tell no name/,
    });
  });
});

describe('distinguished names', () => {
  test('are written as GnuTLS writes them', () => {
    const subject =
      'C=GB\nO=Example\\, \\"Org\\"\nOU=a + OU=b\nCN=x=y\\+z\nemailAddress=a@b.c\nGN=given\nSN=sur';
    assert.equal(
      distinguishedName(subject),
      'C=GB,O=Example\\, \\"Org\\",OU=a+OU=b,CN=x=y\\+z,EMAIL=a@b.c,givenName=given,surName=sur',
    );
    // A value that looks like more attributes stays one.
    assert.equal(distinguishedName('CN=x\\0AO=y\\, L=z \\+ OU=a'), 'CN=x\\0AO=y\\, L=z \\+ OU=a');
  });
});
