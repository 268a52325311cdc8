import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { limits } from '../../src/base/limits.js';
import { MonitorFixture, version } from './monitor-fixture.js';

let fixture: MonitorFixture;

beforeEach(() => {
  fixture = new MonitorFixture();
});

afterEach(() => fixture.close());

describe('a QMP monitor', () => {
  it('greets, negotiates, and refuses commands before and negotiation after', async () => {
    await fixture.openMonitor();
    const client = await fixture.connect();
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
    await fixture.openMonitor();
    const client = await fixture.openClient();
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
    await fixture.openMonitor();
    const client = await fixture.openClient();
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
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.send(
      '{"execute":"echo","arguments":{"text":"1"}}{"execute":"hang"}{"execute":"echo","arguments":{"text":"2"}}',
    );
    assert.deepEqual(await client.read(), { return: '1' });
    assert.ok(await client.isSilent());
    assert.deepEqual(fixture.executed, ['1', 'hang']);
    fixture.release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.deepEqual(await client.read(), { return: '2' });
  });

  it('sends events to clients that have negotiated, with the time', async () => {
    await fixture.openMonitor();
    const client = await fixture.connect();
    await client.read();
    fixture.monitor.sendEvent({ name: 'EARLY', data: {} });
    assert.deepEqual(await client.execute('qmp_capabilities'), { return: {} });
    const before = Date.now();
    fixture.monitor.sendEvent({ name: 'GONE', data: { id: 'e' } });
    const event = await client.read();
    const { seconds, microseconds } = event['timestamp'] as { seconds: number; microseconds: number };
    assert.ok(Number.isInteger(seconds) && Number.isInteger(microseconds) && microseconds < 1e6);
    assert.ok(Math.abs(seconds * 1000 + microseconds / 1000 - before) < 5000);
    assert.deepEqual({ ...event, timestamp: 0 }, { timestamp: 0, event: 'GONE', data: { id: 'e' } });
  });

  it('goes on after rubbish and half a command', async () => {
    await fixture.openMonitor();
    const client = await fixture.openClient();
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
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.send('{"execute":"echo","arguments":{"text":"1"}}{"execute":"hang"}');
    client.send('{"execute":"repeat","arguments":{"count":3000000}}');
    client.socket.end();
    assert.deepEqual(await client.read(), { return: '1' });
    await delay(50);
    fixture.release();
    assert.deepEqual(await client.read(), { return: {} });
    assert.equal(((await client.read())['return'] as string).length, 3_000_000);
    assert.equal(await client.next(), undefined);
  });

  it('loses no answer of a client that closed its side and reads late', async () => {
    await fixture.openMonitor();
    // About as much as a socket holds: of some number of answers the last one is still in the process.
    for (let count = 10; count < 40; count++) {
      const client = await fixture.openClient();
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
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.socket.pause();
    const command = `{"execute":"repeat","arguments":{"count":1000000}}${' '.repeat(1000)}`;
    client.send(command.repeat(100));
    await delay(200);
    // The socket's buffers hold less than one answer.
    assert.ok(fixture.executed.length <= 3, `${fixture.executed.length} commands were run`);
    for (let sent = 0; sent < 40; sent++) {
      fixture.monitor.sendEvent({ name: 'LARGE', data: { text: 'y'.repeat(1 << 20) } });
    }
    client.socket.resume();
    let last: unknown = {};
    let answers = 0;
    while (last !== undefined) {
      last = await client.next().catch(() => undefined);
      answers++;
    }
    assert.ok(answers < 40, `${answers} messages came`);
    const another = await fixture.openClient();
    assert.deepEqual(await another.execute('echo', { text: 'a' }), { return: 'a' });
  });

  it('refuses a message that is too large and goes on', async () => {
    await fixture.openMonitor();
    const client = await fixture.openClient();
    client.send(`{"execute":"echo","arguments":{"text":"${'a'.repeat(limits.qmpMessageBytesMax)}"}}`);
    assert.deepEqual(await client.read(), {
      error: { class: 'GenericError', desc: 'JSON token size limit exceeded' },
    });
    assert.deepEqual(await client.execute('echo', { text: 'a' }), { return: 'a' });
  });

  it('writes lines for people when asked', async () => {
    await fixture.openMonitor({ pretty: true });
    const client = await fixture.connect();
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
