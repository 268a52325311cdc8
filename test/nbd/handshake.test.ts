import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { makeTempDir } from '../support/temp-dir.js';
import { MemoryExport } from './memory-export.js';
import { startServer } from './nbd-test-server.js';
import { contextQuery, exportQuery, string32 } from './raw-client.js';

const ACK = { type: 1, data: Buffer.alloc(0) };
const ERR_UNSUP = 0x8000_0001;
const ERR_POLICY = 0x8000_0002;
const ERR_INVALID = 0x8000_0003;
const ERR_UNKNOWN = 0x8000_0006;
const ERR_TOO_BIG = 0x8000_0009;

describe('NBD handshake', () => {
  const dir = makeTempDir();
  const disk = () => new MemoryExport({ size: 1 << 20 });

  test('greets with fixed newstyle and no zeroes', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    assert.equal(await client.greet(), 3);
  });

  test('NBD_OPT_EXPORT_NAME answers with size, flags and 124 zeroes, or without them', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    for (const [clientFlags, length] of [
      [1, 134],
      [3, 10],
      [0, 134],
    ]) {
      const client = await connect();
      await client.greet(clientFlags);
      client.sendOption(1);
      const answer = await client.read(length);
      assert.equal(answer.readBigUInt64BE(), 1n << 20n);
      assert.equal(answer.readUInt16BE(8), 0b1101_0110_1101, 'no DF without structured replies');
      assert.ok(answer.subarray(10).every((byte) => byte === 0));
      client.request({ type: 0, length: 512 });
      assert.equal((await client.outcome()).errno, 0);
    }
  });

  test('NBD_OPT_EXPORT_NAME of nothing ends the connection', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet();
    client.sendOption(1, Buffer.from('absent'));
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('unknown client flags end the connection', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet(7);
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('NBD_OPT_ABORT is acknowledged, whatever comes with it', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet();
    assert.deepEqual(await client.option(2, Buffer.from('bye')), [ACK]);
    assert.equal((await client.readToEnd()).length, 0);
  });

  test('NBD_OPT_LIST names the exports, with descriptions', async (t) => {
    const { server, connect } = await startServer(t, dir);
    const longest = 'ü'.repeat(2048);
    server.addExport({ name: 'a', target: disk(), description: 'the first' });
    server.addExport({ name: longest, target: disk() });
    const client = await connect();
    await client.greet();
    assert.deepEqual(await client.option(3), [
      { type: 2, data: Buffer.concat([string32('a'), Buffer.from('the first')]) },
      { type: 2, data: string32(longest) },
      ACK,
    ]);
    assert.equal((await client.option(3, Buffer.from('x')))[0].type, ERR_INVALID);
    await client.go({ name: longest });
    assert.equal(client.size, 1 << 20);
  });

  test('NBD_OPT_INFO tells export, block sizes, name and description', async (t) => {
    const { server, connect } = await startServer(t, dir);
    const target = new MemoryExport({
      size: 8192,
      blockSizes: { minimum: 512, preferred: 8192, maximum: 1 << 20 },
    });
    server.addExport({ name: 'x', target, description: 'text' });
    const client = await connect();
    await client.greet();
    const answers = await client.option(6, exportQuery('x', [1, 2, 3, 99]));
    assert.deepEqual(
      answers.map(({ type, data }) => `${type} ${data.toString('hex')}`),
      [
        `3 0000${'0000000000002000'}${'0d6d'}`,
        `3 0003${'00000200'}${'00002000'}${'00100000'}`,
        `3 0001${Buffer.from('x').toString('hex')}`,
        `3 0002${Buffer.from('text').toString('hex')}`,
        '1 ',
      ],
    );
    // Still negotiating.
    await client.go({ name: 'x' });
    assert.equal((await client.call({ type: 3 })).errno, 0);
  });

  test('an unknown export is an error that the client survives', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet();
    for (const option of [6, 7]) {
      const [answer] = await client.option(option, exportQuery('absent'));
      assert.equal(answer.type, ERR_UNKNOWN);
      assert.match(answer.data.toString(), /there is no export "absent"/);
    }
    await client.go();
  });

  test('malformed options are refused one by one', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet();
    const count = (n: number): Buffer => Buffer.from([0, 0, 0, n]);
    const cases: [number, Buffer][] = [
      [7, Buffer.alloc(0)],
      [7, Buffer.alloc(5)],
      [7, Buffer.concat([count(9), Buffer.from('short')])],
      [7, Buffer.concat([Buffer.from([0xff, 0xff, 0xff, 0xff]), Buffer.alloc(100)])],
      [7, Buffer.concat([string32(''), Buffer.from([0, 2, 0, 3])])],
      [7, Buffer.concat([exportQuery('', [3]), Buffer.from([0])])],
      [7, exportQuery('\0')],
      [7, Buffer.concat([string32(Buffer.from([0xc3])), Buffer.alloc(2)])],
      [7, exportQuery('x'.repeat(4097))],
      [8, Buffer.from('x')],
    ];
    for (const [option, data] of cases) {
      const [answer] = await client.option(option, data);
      assert.equal(answer.type, ERR_INVALID, `option ${option} with ${data.toString('hex').slice(0, 40)}`);
    }
    await client.option(8);
    const contextCases = [
      Buffer.alloc(0),
      string32(''),
      Buffer.concat([string32(''), count(1)]),
      Buffer.concat([string32(''), count(2), string32('base:allocation')]),
      Buffer.concat([contextQuery('', ['base:allocation']), Buffer.from([0])]),
      contextQuery('', ['no namespace']),
      contextQuery('', ['base:allocation', '']),
      Buffer.concat([string32(''), Buffer.from([0xff, 0xff, 0xff, 0xff]), string32('base:allocation')]),
    ];
    for (const option of [9, 10]) {
      for (const data of contextCases) {
        const [answer] = await client.option(option, data);
        assert.equal(answer.type, ERR_INVALID, `option ${option} with ${data.toString('hex').slice(0, 80)}`);
      }
    }
    await client.go();
  });

  test('unknown options and TLS are refused, and long ones passed over', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    await client.greet();
    assert.equal((await client.option(4711, Buffer.alloc(1000)))[0].type, ERR_UNSUP);
    assert.equal((await client.option(11))[0].type, ERR_UNSUP, 'extended headers');
    assert.equal((await client.option(0))[0].type, ERR_UNSUP);
    assert.equal((await client.option(5))[0].type, ERR_POLICY);
    client.sendOption(4711, Buffer.alloc(1 << 20));
    assert.equal((await client.readOptionAnswer(4711)).type, ERR_TOO_BIG);
    await client.go();
    assert.equal((await client.call({ type: 0, length: 1 })).errno, 0);
  });

  test('metadata contexts: listed with and without wildcard, selected by name for one export', async (t) => {
    const { server, connect } = await startServer(t, dir, { target: disk() });
    server.addExport({ name: 'other', target: disk() });
    const client = await connect();
    await client.greet();
    assert.equal((await client.option(10, contextQuery('', ['base:allocation'])))[0].type, ERR_INVALID);
    await client.option(8);
    client.structured = true;
    const context = Buffer.concat([Buffer.alloc(4), Buffer.from('base:allocation')]);
    for (const queries of [[], ['base:'], ['base:allocation'], ['x-y:z', 'base:allocation']]) {
      assert.deepEqual(await client.option(9, contextQuery('', queries)), [{ type: 4, data: context }, ACK]);
    }
    assert.deepEqual(await client.option(9, contextQuery('', ['qemu:dirty-bitmap:x', 'base:x'])), [ACK]);
    for (const queries of [[], ['base:'], ['base:nothing']]) {
      assert.deepEqual(await client.option(10, contextQuery('', queries)), [ACK]);
    }
    assert.equal((await client.option(10, contextQuery('absent', ['base:allocation'])))[0].type, ERR_UNKNOWN);
    const selected = await client.option(10, contextQuery('', ['base:allocation']));
    assert.equal(selected[0].type, 4);
    assert.equal(selected[0].data.subarray(4).toString(), 'base:allocation');
    assert.deepEqual(selected[1], ACK);
    await client.go();
    assert.deepEqual((await client.call({ type: 7, length: 4096 })).extents, [{ length: 4096, flags: 0 }]);
  });

  test('a context selected for another export, or before a failed selection, does not count', async (t) => {
    const { server, connect } = await startServer(t, dir, { target: disk() });
    server.addExport({ name: 'other', target: disk() });
    for (const last of [
      contextQuery('other', ['base:allocation']),
      contextQuery('', ['base:']),
      Buffer.alloc(1),
    ]) {
      const client = await connect();
      await client.greet();
      await client.option(8);
      client.structured = true;
      assert.equal((await client.option(10, contextQuery('', ['base:allocation']))).length, 2);
      await client.option(10, last);
      await client.go();
      const outcome = await client.call({ type: 7, length: 4096 });
      assert.equal(outcome.errno, 22);
    }
  });

  test('everything in one write: handshake and requests are taken apart', async (t) => {
    const { connect } = await startServer(t, dir, { target: disk() });
    const client = await connect();
    client.send(Buffer.from([0, 0, 0, 3]));
    client.sendOption(8);
    client.sendOption(7, exportQuery(''));
    client.structured = true;
    client.request({ type: 1, offset: 4096, data: Buffer.from('data') });
    client.request({ type: 2 });
    await client.read(18);
    assert.deepEqual(await client.readOptionAnswer(8), ACK);
    let answer = await client.readOptionAnswer(7);
    while (answer.type === 3) {
      answer = await client.readOptionAnswer(7);
    }
    assert.deepEqual(answer, ACK);
    assert.equal((await client.outcome()).errno, 0);
    assert.equal((await client.readToEnd()).length, 0);
  });
});
