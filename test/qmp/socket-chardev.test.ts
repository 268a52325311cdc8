import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, existsSync, linkSync, openSync, statSync, writeFileSync } from 'node:fs';
import { createServer, Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { duplicateFd } from '../../src/native/fd.js';
import { connectUnix, socketPair, UnixListener } from '../../src/native/unix-socket.js';
import { SocketChardev, type SocketChardevOptions } from '../../src/qmp/socket-chardev.js';
import { openFdCount } from '../support/resources.js';
import { QmpClient } from './client.js';
import { MonitorFixture } from './monitor-fixture.js';

let fixture: MonitorFixture;

beforeEach(() => {
  fixture = new MonitorFixture();
});

afterEach(() => fixture.close());

describe('a socket character device', () => {
  it('serves one client at a time, the others in their order', async () => {
    await fixture.openMonitor();
    const first = await fixture.openClient();
    const second = await fixture.connect();
    const third = await fixture.connect();
    const fourth = await fixture.connect();
    assert.ok(await second.isSilent());
    third.close();
    first.close();
    assert.ok('QMP' in (await second.read()));
    assert.deepEqual(await second.execute('qmp_capabilities'), { return: {} });
    assert.ok(await fourth.isSilent());
    second.close();
    assert.ok('QMP' in (await fourth.read()));
  });

  it('turns away more clients than can wait', async () => {
    await fixture.openMonitor();
    await fixture.openClient();
    const waiting: QmpClient[] = [];
    for (let count = 0; count < 17; count++) {
      waiting.push(await fixture.connect());
    }
    assert.deepEqual(await waiting[16].next(), {
      error: { class: 'GenericError', desc: 'too many clients wait for this monitor already' },
    });
    assert.equal(await waiting[16].next(), undefined);
    assert.ok(await waiting[15].isSilent());
  });

  it('keeps a client waiting until it is served', async () => {
    await fixture.openChardev();
    const client = await fixture.connect();
    await fixture.chardev.connected;
    assert.equal(fixture.chardev.filename, `unix:${fixture.path},server=on`);
    assert.equal(fixture.chardev.isAttached, false);
    fixture.chardev.attach(fixture.createMonitor());
    assert.ok(await client.isSilent());
    fixture.chardev.serve();
    assert.ok('QMP' in (await client.read()));
    assert.throws(() => fixture.chardev.attach(fixture.createMonitor()), {
      code: 'BUSY',
      message: "Device 'm' is in use",
    });
  });

  it('is for its user only, and goes away at the end', async () => {
    await fixture.openMonitor();
    assert.equal(statSync(fixture.path).mode & 0o777, 0o600);
    assert.equal(fixture.chardev.filename, `disconnected:unix:${fixture.path},server=on`);
    await fixture.chardev.close();
    await fixture.chardev.close();
    assert.ok(!existsSync(fixture.path));
  });

  it('takes the place of one that was left behind', async () => {
    const leaver = createServer();
    leaver.listen(fixture.path);
    await once(leaver, 'listening');
    // A file that outlives its listener, as after a kill -9.
    const kept = join(fixture.directory, 'kept');
    linkSync(fixture.path, kept);
    await new Promise((closed) => leaver.close(closed));
    linkSync(kept, fixture.path);
    await fixture.openMonitor();
    await fixture.openClient();
  });

  it("takes nobody else's place", async () => {
    await fixture.openMonitor();
    await assert.rejects(
      SocketChardev.open({ id: 'n', address: { type: 'unix', path: fixture.path }, server: true }),
      {
        code: 'BUSY',
        message: `Failed to bind socket to ${fixture.path}: another process listens there`,
      },
    );
    await fixture.openClient();
    const file = join(fixture.directory, 'file');
    writeFileSync(file, 'precious');
    await assert.rejects(
      SocketChardev.open({ id: 'n', address: { type: 'unix', path: file }, server: true }),
      { code: 'ALREADY_EXISTS', message: `Failed to bind socket to ${file}: a file is in the way` },
    );
    assert.equal(statSync(file).size, 8);
  });

  it('says why it cannot be made', async () => {
    await fixture.openMonitor();
    const open = (address: string) =>
      SocketChardev.open({ id: 'n', address: { type: 'unix', path: address }, server: true });
    await assert.rejects(open(join(fixture.directory, 'no', 'where')), {
      message: `Failed to bind socket to ${fixture.directory}/no/where: No such file or directory`,
      hint: `Make its directory: mkdir -p ${fixture.directory}/no`,
    });
    await assert.rejects(open(join(fixture.directory, 'x'.repeat(108))), {
      code: 'INVALID_ARGUMENT',
      message: /is too long$/,
    });
    await assert.rejects(
      SocketChardev.open({
        id: 'n',
        address: { type: 'unix', path: join(fixture.directory, 'none') },
        server: false,
      }),
      {
        message: `Failed to connect to '${fixture.directory}/none': No such file or directory`,
        hint: /server=on/,
      },
    );
  });

  it('can be a port of the loopback address', async () => {
    await fixture.openMonitor();
    const inet = await SocketChardev.open({
      id: 'n',
      address: { type: 'inet', host: '127.0.0.1', port: 0 },
      server: true,
    });
    const port = Number(/^disconnected:tcp:127\.0\.0\.1:(\d+),server=on$/.exec(inet.filename)?.[1]);
    inet.attach(fixture.createMonitor());
    inet.serve();
    const client = await QmpClient.open({ host: '127.0.0.1', port });
    assert.match(inet.filename, /^tcp:127\.0\.0\.1:\d+,server=on <-> 127\.0\.0\.1:\d+$/);
    await inet.close();
    assert.equal(await client.next(), undefined);
  });

  it('can connect to one who listens', async () => {
    await fixture.openMonitor();
    const manager = createServer();
    const socket = join(fixture.directory, 'manager');
    manager.listen(socket);
    await once(manager, 'listening');
    const connected = once(manager, 'connection');
    const out = await SocketChardev.open({ id: 'n', address: { type: 'unix', path: socket }, server: false });
    out.attach(fixture.createMonitor());
    out.serve();
    const [peer] = await connected;
    peer.setEncoding('utf8');
    const [greeting] = await once(peer, 'data');
    assert.match(greeting, /^\{"QMP"/);
    await out.close();
    peer.destroy();
    await new Promise((closed) => manager.close(closed));
  });
});

describe('a socket of another kind', () => {
  const open = async (options: Omit<SocketChardevOptions, 'id'>): Promise<SocketChardev> => {
    const chardev = await SocketChardev.open({ id: 'n', ...options });
    chardev.attach(fixture.createMonitor());
    chardev.serve();
    return chardev;
  };

  it('has an abstract name, as long as it is written', async () => {
    const name = `vduse-chardev-${process.pid}`;
    const chardev = await open({ address: { type: 'unix', path: `\0${name}` }, server: true });
    assert.equal(chardev.filename, `disconnected:unix:${name},abstract=on,tight=on,server=on`);
    const client = new QmpClient(new Socket({ fd: connectUnix(`@${name}`) }));
    assert.ok('QMP' in (await client.read()));
    client.close();
    await chardev.close();
  });

  it('connects to an abstract name', async () => {
    const name = `vduse-manager-${process.pid}`;
    const manager = createServer();
    manager.listen({ fd: new UnixListener(`@${name}`).fd });
    const connected = once(manager, 'connection');
    const chardev = await open({ address: { type: 'unix', path: `\0${name}` }, server: false });
    const client = new QmpClient((await connected)[0]);
    assert.ok('QMP' in (await client.read()));
    client.close();
    await chardev.close();
    await new Promise((closed) => manager.close(closed));
  });

  it('is a listening socket that somebody else opened', async () => {
    const path = join(fixture.directory, 'inherited');
    const listener = new UnixListener(path);
    const fd = duplicateFd(listener.fd);
    const chardev = await open({ address: { type: 'fd', fd }, server: true });
    assert.equal(chardev.filename, `disconnected:fd:${fd},server=on`);
    const client = await QmpClient.open(path);
    client.close();
    await chardev.close();
    listener.close();
  });

  it('is a connection that somebody else opened', async () => {
    const [ours, theirs] = socketPair();
    const chardev = await open({ address: { type: 'fd', fd: ours }, server: false });
    assert.equal(chardev.filename, `fd:${ours}`);
    const client = new QmpClient(new Socket({ fd: theirs }));
    assert.ok('QMP' in (await client.read()));
    client.close();
    await chardev.close();
  });

  it('must be a socket', async () => {
    const fd = openSync(join(fixture.directory, 'file'), 'w');
    for (const server of [true, false]) {
      await assert.rejects(SocketChardev.open({ id: 'n', address: { type: 'fd', fd }, server }), {
        code: 'SYSTEM_CALL',
      });
    }
    closeSync(fd);
  });

  it('connects again, and waits for who is not there yet', async () => {
    const path = join(fixture.directory, 'later');
    const chardev = await open({ address: { type: 'unix', path }, server: false, reconnectMs: 10 });
    assert.equal(chardev.filename, `disconnected:unix:${path}`);
    const manager = createServer();
    manager.listen(path);
    for (let round = 0; round < 3; round++) {
      const [peer] = (await once(manager, 'connection')) as [Socket];
      const client = new QmpClient(peer);
      assert.ok('QMP' in (await client.read()));
      client.close();
    }
    await chardev.close();
    await new Promise((closed) => manager.close(closed));
  });
});

describe('closing a monitor', () => {
  it('answers the running command and ends the connection', async () => {
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.send('{"execute":"hang"}{"execute":"echo","arguments":{"text":"never"}}');
    await delay(50);
    const closed = fixture.chardev.close();
    fixture.release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.equal(await client.next(), undefined);
    await closed;
    assert.deepEqual(fixture.executed, ['hang']);
  });

  it('does not wait for ever for a command or a client, and leaves no descriptor', async () => {
    await fixture.openMonitor();
    await fixture.chardev.close();
    const before = openFdCount();
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.socket.pause();
    client.send('{"execute":"repeat","arguments":{"count":5000000}}{"execute":"hang"}');
    await delay(50);
    const started = Date.now();
    await fixture.chardev.close();
    assert.ok(Date.now() - started < 5000);
    client.close();
    await once(client.socket, 'close');
    await delay(20);
    assert.equal(openFdCount(), before);
  });
});
