import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, linkSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { VduseError } from '../../src/base/errors.js';
import { limits } from '../../src/base/limits.js';
import { QmpCommandTable } from '../../src/qmp/command-table.js';
import { QmpError } from '../../src/qmp/errors.js';
import { QmpMonitor } from '../../src/qmp/monitor.js';
import { jsonScalars as s, struct } from '../../src/qmp/qapi.js';
import { SocketChardev } from '../../src/qmp/socket-chardev.js';
import { openFdCount } from '../support/resources.js';
import { QmpClient } from './client.js';

const version = { qemu: { major: 7, minor: 2, micro: 0 }, package: 'test' };

let directory: string;
let path: string;
let chardev: SocketChardev;
let monitor: QmpMonitor;
const clients: QmpClient[] = [];
/** What `hang` waits for. */
let release: () => void;
const executed: string[] = [];

function createCommands(): QmpCommandTable {
  const commands = new QmpCommandTable();
  commands.addQuery('echo', struct({ text: s.str }), ({ text }) => {
    executed.push(text);
    return text;
  });
  commands.addQuery('repeat', struct({ count: s.int }), ({ count }) => {
    executed.push('repeat');
    return 'x'.repeat(count);
  });
  commands.addAction('hang', struct({}), async () => {
    executed.push('hang');
    await new Promise<void>((done) => {
      release = done;
    });
  });
  commands.addAction('fail', struct({}), () => {
    throw new VduseError('BUSY', 'it is in use');
  });
  commands.addAction('lost', struct({}), () => {
    throw new QmpError('DeviceNotFound', "Device 'x' not found");
  });
  return commands;
}

async function openMonitor(options: { pretty?: boolean } = {}): Promise<void> {
  chardev = await SocketChardev.open({ id: 'm', address: { type: 'unix', path }, server: true });
  monitor = new QmpMonitor({ commands: createCommands(), version, ...options });
  chardev.attach(monitor);
  chardev.serve();
}

async function connect(): Promise<QmpClient> {
  const client = await QmpClient.connect(path);
  clients.push(client);
  return client;
}

async function openClient(): Promise<QmpClient> {
  const client = await QmpClient.open(path);
  clients.push(client);
  return client;
}

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-qmp-'));
  path = join(directory, 'qmp.sock');
  executed.length = 0;
});

afterEach(async () => {
  for (const client of clients.splice(0)) {
    client.close();
  }
  await chardev.close();
  rmSync(directory, { recursive: true });
});

describe('a QMP monitor', () => {
  it('greets, negotiates, and refuses commands before and negotiation after', async () => {
    await openMonitor();
    const client = await connect();
    assert.deepEqual(await client.read(), { QMP: { version, capabilities: [] } });
    assert.deepEqual(await client.execute('echo', { text: 'a' }), {
      error: {
        class: 'CommandNotFound',
        desc: "Expecting capabilities negotiation with 'qmp_capabilities'",
      },
    });
    assert.deepEqual(await client.execute('qmp_capabilities', { enable: ['oob'] }), {
      error: { class: 'GenericError', desc: "Capability 'oob' is not available" },
    });
    assert.deepEqual(await client.execute('qmp_capabilities', { enable: [] }), { return: {} });
    assert.deepEqual(await client.execute('echo', { text: 'a' }), { return: 'a' });
    assert.deepEqual(await client.execute('qmp_capabilities'), {
      error: {
        class: 'CommandNotFound',
        desc: 'Capabilities negotiation is already complete, command ignored',
      },
    });
  });

  it('repeats the id, whatever it is, and never two answers for one command', async () => {
    await openMonitor();
    const client = await openClient();
    client.send('{"execute":"echo","arguments":{"text":"1"},"id":{"a":[1,null]}}');
    client.send('{"execute":"nope","id":null}{"id":"c","execute":7}');
    client.send('{"id":1}{"execute":"echo","arguments":3,"id":2}{"execute":"echo","foo":1,"id":3}[4]');
    assert.deepEqual(await client.read(), { return: '1', id: { a: [1, null] } });
    assert.deepEqual(await client.read(), {
      id: null,
      error: { class: 'CommandNotFound', desc: 'The command nope has not been found' },
    });
    const error = (desc: string) => ({ class: 'GenericError', desc });
    assert.deepEqual(await client.read(), {
      id: 'c',
      error: error("QMP input member 'execute' must be a string"),
    });
    assert.deepEqual(await client.read(), { id: 1, error: error("QMP input lacks member 'execute'") });
    assert.deepEqual(await client.read(), {
      id: 2,
      error: error("QMP input member 'arguments' must be an object"),
    });
    assert.deepEqual(await client.read(), { id: 3, error: error("QMP input member 'foo' is unexpected") });
    assert.deepEqual(await client.read(), { error: error('QMP input must be a JSON object') });
    assert.ok(await client.isSilent());
    client.send('{"execute":"echo","arguments":{"text":"1"},"id":12345678901234567890}');
    assert.equal(await client.readLine(), '{"return": "1", "id": 12345678901234567890}');
  });

  it('tells the class of an error, and checks arguments', async () => {
    await openMonitor();
    const client = await openClient();
    assert.deepEqual(await client.execute('fail'), {
      error: { class: 'GenericError', desc: 'it is in use' },
    });
    assert.deepEqual(await client.execute('lost'), {
      error: { class: 'DeviceNotFound', desc: "Device 'x' not found" },
    });
    assert.deepEqual(await client.execute('echo', { txt: 'a' }), {
      error: { class: 'GenericError', desc: "Parameter 'text' is missing" },
    });
    assert.deepEqual(await client.execute('echo', { text: 'a', more: 1 }), {
      error: { class: 'GenericError', desc: "Parameter 'more' is unexpected" },
    });
  });

  it('runs commands in order, one at a time', async () => {
    await openMonitor();
    const client = await openClient();
    client.send(
      '{"execute":"echo","arguments":{"text":"1"}}{"execute":"hang"}{"execute":"echo","arguments":{"text":"2"}}',
    );
    assert.deepEqual(await client.read(), { return: '1' });
    assert.ok(await client.isSilent());
    assert.deepEqual(executed, ['1', 'hang']);
    release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.deepEqual(await client.read(), { return: '2' });
  });

  it('sends events to clients that have negotiated, with the time', async () => {
    await openMonitor();
    const client = await connect();
    await client.read();
    monitor.sendEvent({ name: 'EARLY', data: {} });
    assert.deepEqual(await client.execute('qmp_capabilities'), { return: {} });
    const before = Date.now();
    monitor.sendEvent({ name: 'GONE', data: { id: 'e' } });
    const event = await client.read();
    const { seconds, microseconds } = event['timestamp'] as { seconds: number; microseconds: number };
    assert.ok(Number.isInteger(seconds) && Number.isInteger(microseconds) && microseconds < 1e6);
    assert.ok(Math.abs(seconds * 1000 + microseconds / 1000 - before) < 5000);
    assert.deepEqual({ ...event, timestamp: 0 }, { timestamp: 0, event: 'GONE', data: { id: 'e' } });
  });

  it('goes on after rubbish and half a command', async () => {
    await openMonitor();
    const client = await openClient();
    client.send(Uint8Array.of(0xff, 0xfe, 0x00));
    client.send('}}]]"\n');
    client.send('{"execute":"echo","arguments":{"te');
    await delay(20);
    client.send('xt":"late"}}');
    const answers = [];
    for (;;) {
      const answer = await client.read();
      answers.push(answer);
      if ('return' in answer) {
        break;
      }
    }
    assert.deepEqual(answers.at(-1), { return: 'late' });
    assert.equal(answers.length, 9);
  });

  it('answers what a client sent before it closed its side', async () => {
    await openMonitor();
    const client = await openClient();
    client.send('{"execute":"echo","arguments":{"text":"1"}}{"execute":"hang"}');
    client.send('{"execute":"repeat","arguments":{"count":3000000}}');
    client.socket.end();
    assert.deepEqual(await client.read(), { return: '1' });
    await delay(50);
    release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.equal(((await client.read())['return'] as string).length, 3_000_000);
    assert.equal(await client.next(), undefined);
  });

  it('loses no answer of a client that closed its side and reads late', async () => {
    await openMonitor();
    // About as much as a socket holds: of some number of answers the last one is still in the process.
    for (let count = 10; count < 40; count++) {
      const client = await openClient();
      client.socket.pause();
      client.send('{"execute":"repeat","arguments":{"count":8000}}'.repeat(count));
      client.socket.end();
      await delay(20);
      client.socket.resume();
      let answers = 0;
      while ((await client.next()) !== undefined) {
        answers++;
      }
      assert.equal(answers, count);
    }
  });

  it('does not read on while a client takes no answers, and disconnects one that lets events pile up', async () => {
    await openMonitor();
    const client = await openClient();
    client.socket.pause();
    const command = `{"execute":"repeat","arguments":{"count":1000000}}${' '.repeat(1000)}`;
    client.send(command.repeat(100));
    await delay(200);
    // The socket's buffers hold less than one answer.
    assert.ok(executed.length <= 3, `${executed.length} commands were run`);
    for (let sent = 0; sent < 40; sent++) {
      monitor.sendEvent({ name: 'LARGE', data: { text: 'y'.repeat(1 << 20) } });
    }
    client.socket.resume();
    let last: unknown = {};
    let answers = 0;
    while (last !== undefined) {
      last = await client.next().catch(() => undefined);
      answers++;
    }
    assert.ok(answers < 40, `${answers} messages came`);
    const another = await openClient();
    assert.deepEqual(await another.execute('echo', { text: 'a' }), { return: 'a' });
  });

  it('refuses a message that is too large and goes on', async () => {
    await openMonitor();
    const client = await openClient();
    client.send(`{"execute":"echo","arguments":{"text":"${'a'.repeat(limits.qmpMessageBytesMax)}"}}`);
    assert.deepEqual(await client.read(), {
      error: { class: 'GenericError', desc: 'JSON token size limit exceeded' },
    });
    assert.deepEqual(await client.execute('echo', { text: 'a' }), { return: 'a' });
  });

  it('writes lines for people when asked', async () => {
    await openMonitor({ pretty: true });
    const client = await connect();
    let text = '';
    client.socket.removeAllListeners('data');
    client.socket.on('data', (part: string) => {
      text += part;
    });
    while (!text.endsWith('}\n')) {
      await delay(5);
    }
    assert.match(text, /^\{\n {4}"QMP": \{\n {8}"version": \{\n/);
  });
});

describe('its socket', () => {
  it('serves one client at a time, the others in their order', async () => {
    await openMonitor();
    const first = await openClient();
    const second = await connect();
    const third = await connect();
    const fourth = await connect();
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
    await openMonitor();
    await openClient();
    const waiting: QmpClient[] = [];
    for (let count = 0; count < 17; count++) {
      waiting.push(await connect());
    }
    assert.equal(await waiting[16].next(), undefined);
    assert.ok(await waiting[15].isSilent());
  });

  it('keeps a client waiting until it is served', async () => {
    chardev = await SocketChardev.open({ id: 'm', address: { type: 'unix', path }, server: true });
    const client = await connect();
    await chardev.connected;
    assert.equal(chardev.filename, `unix:${path},server=on`);
    assert.equal(chardev.isAttached, false);
    chardev.attach(new QmpMonitor({ commands: createCommands(), version }));
    assert.ok(await client.isSilent());
    chardev.serve();
    assert.ok('QMP' in (await client.read()));
    assert.throws(() => chardev.attach(new QmpMonitor({ commands: createCommands(), version })), {
      code: 'BUSY',
      message: "Device 'm' is in use",
    });
  });

  it('is for its user only, and goes away at the end', async () => {
    await openMonitor();
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.equal(chardev.filename, `disconnected:unix:${path},server=on`);
    await chardev.close();
    await chardev.close();
    assert.ok(!existsSync(path));
  });

  it('takes the place of one that was left behind', async () => {
    const leaver = createServer();
    leaver.listen(path);
    await once(leaver, 'listening');
    // A file that outlives its listener, as after a kill -9.
    const kept = join(directory, 'kept');
    linkSync(path, kept);
    await new Promise((closed) => leaver.close(closed));
    linkSync(kept, path);
    await openMonitor();
    await openClient();
  });

  it("takes nobody else's place", async () => {
    await openMonitor();
    await assert.rejects(SocketChardev.open({ id: 'n', address: { type: 'unix', path }, server: true }), {
      code: 'BUSY',
      message: `Failed to bind socket to ${path}: another process listens there`,
    });
    await openClient();
    const file = join(directory, 'file');
    writeFileSync(file, 'precious');
    await assert.rejects(
      SocketChardev.open({ id: 'n', address: { type: 'unix', path: file }, server: true }),
      { code: 'ALREADY_EXISTS', message: `Failed to bind socket to ${file}: a file is in the way` },
    );
    assert.equal(statSync(file).size, 8);
  });

  it('says why it cannot be made', async () => {
    await openMonitor();
    const open = (address: string) =>
      SocketChardev.open({ id: 'n', address: { type: 'unix', path: address }, server: true });
    await assert.rejects(open(join(directory, 'no', 'where')), {
      message: `Failed to bind socket to ${directory}/no/where: No such file or directory`,
    });
    await assert.rejects(open(join(directory, 'x'.repeat(108))), {
      code: 'INVALID_ARGUMENT',
      message: /is too long$/,
    });
    await assert.rejects(
      SocketChardev.open({
        id: 'n',
        address: { type: 'unix', path: join(directory, 'none') },
        server: false,
      }),
      { message: `Failed to connect to '${directory}/none': No such file or directory` },
    );
  });

  it('can be a port of the loopback address', async () => {
    await openMonitor();
    const inet = await SocketChardev.open({
      id: 'n',
      address: { type: 'inet', host: '127.0.0.1', port: 0 },
      server: true,
    });
    const port = Number(/^disconnected:tcp:127\.0\.0\.1:(\d+),server=on$/.exec(inet.filename)?.[1]);
    inet.attach(new QmpMonitor({ commands: createCommands(), version }));
    inet.serve();
    const client = await QmpClient.open({ host: '127.0.0.1', port });
    assert.match(inet.filename, /^tcp:127\.0\.0\.1:\d+,server=on <-> 127\.0\.0\.1:\d+$/);
    await inet.close();
    assert.equal(await client.next(), undefined);
  });

  it('can connect to one who listens', async () => {
    await openMonitor();
    const manager = createServer();
    const socket = join(directory, 'manager');
    manager.listen(socket);
    await once(manager, 'listening');
    const connected = once(manager, 'connection');
    const out = await SocketChardev.open({ id: 'n', address: { type: 'unix', path: socket }, server: false });
    out.attach(new QmpMonitor({ commands: createCommands(), version }));
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

describe('closing a monitor', () => {
  it('answers the running command and ends the connection', async () => {
    await openMonitor();
    const client = await openClient();
    client.send('{"execute":"hang"}{"execute":"echo","arguments":{"text":"never"}}');
    await delay(50);
    const closed = chardev.close();
    release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.equal(await client.next(), undefined);
    await closed;
    assert.deepEqual(executed, ['hang']);
  });

  it('does not wait for ever for a command or a client, and leaves no descriptor', async () => {
    await openMonitor();
    await chardev.close();
    const before = openFdCount();
    await openMonitor();
    const client = await openClient();
    client.socket.pause();
    client.send('{"execute":"repeat","arguments":{"count":5000000}}{"execute":"hang"}');
    await delay(50);
    const started = Date.now();
    await chardev.close();
    assert.ok(Date.now() - started < 5000);
    client.close();
    await once(client.socket, 'close');
    await delay(20);
    assert.equal(openFdCount(), before);
  });
});
