/** What clients of a monitor do wrong costs them an error, and others nothing: an export is read all the while. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { RawClient } from '../nbd/raw-client.js';
import { QmpClient } from '../qmp/client.js';
import { until } from '../support/within.js';

let directory: string;
let daemon: StorageDaemon;
let nbd: RawClient;
const paths = { abused: '', other: '' };

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-monitor-abuse-'));
  daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
  for (const id of ['abused', 'other'] as const) {
    paths[id] = join(directory, id);
    await daemon.startMonitor(paths[id], { id });
  }
  const socket = { type: 'unix', path: join(directory, 'nbd.sock') } as const;
  await daemon.addNode({ driver: 'memory', nodeName: 'm', size: 1 << 20 });
  await daemon.startNbdServer({ address: socket });
  await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'm' });
  nbd = await RawClient.open(socket, { name: 'm' });
});

afterEach(async () => {
  nbd.close();
  await daemon.close();
  rmSync(directory, { recursive: true });
});

async function checkOthers(): Promise<void> {
  assert.equal((await nbd.call({ type: 0, offset: 0, length: 4096 })).errno, 0);
  const client = await QmpClient.open(paths.other);
  await client.succeed('query-block-exports');
  client.close();
}

describe('a monitor that is abused', () => {
  it('by 1000 connections serves one and lets a few wait, and tells the rest', async () => {
    const sockets: Socket[] = [];
    let told = 0;
    const ended: Promise<unknown>[] = [];
    const connect = async (): Promise<void> => {
      const socket = createConnection(paths.abused);
      sockets.push(socket);
      socket.on('data', (data) => {
        told += data.toString().includes('too many clients') ? 1 : 0;
      });
      await once(socket, 'connect');
      ended.push(once(socket, 'close'));
    };
    // In parts: more than the kernel's backlog would be refused by the kernel.
    for (let part = 0; part < 10; part++) {
      await Promise.all(Array.from({ length: 100 }, connect));
      await until('the answers', () => told >= (part + 1) * 100 - 17);
    }
    assert.equal(told, 1000 - 17);
    await checkOthers();
    for (const socket of sockets) {
      socket.destroy();
    }
    await Promise.all(ended);
    const client = await QmpClient.open(paths.abused);
    client.close();
  });

  it('by messages that are none, too long or too deep', async () => {
    const client = await QmpClient.open(paths.abused);
    const desc = async (): Promise<string> =>
      ((await client.read()) as { error: { desc: string } }).error.desc;
    client.send('{"execute": \x01');
    assert.match(await desc(), /^JSON parse error/);
    await checkOthers();
    client.send('['.repeat(100_000));
    client.send(']'.repeat(100_000));
    assert.equal(await desc(), 'JSON nesting depth limit exceeded');
    await checkOthers();
    const piece = Buffer.alloc(1 << 20, 'x');
    client.send('{"execute": "');
    for (let n = 0; n < 20; n++) {
      client.send(piece);
    }
    client.send('"}');
    assert.equal(await desc(), 'JSON token size limit exceeded');
    await checkOthers();
    client.send('{"execute": "query-version", "extra": 1}');
    assert.equal(await desc(), "QMP input member 'extra' is unexpected");
    client.send('{"execute": "blockdev-add", "arguments": {"driver": {}, "node-name": []}}');
    assert.equal(await desc(), "Invalid parameter type for 'driver', expected: string");
    client.send('{"execute": "query-version"}');
    assert.ok('return' in (await client.read()));
    client.close();
  });

  it('by half a command and silence keeps nobody else waiting', async () => {
    const client = await QmpClient.open(paths.abused);
    client.send('{"execute": "query-vers');
    await checkOthers();
    client.close();
    const next = await QmpClient.open(paths.abused);
    await next.succeed('query-version');
    next.close();
  });
});
