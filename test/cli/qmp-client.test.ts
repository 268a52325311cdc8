import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { queryNode } from '../../src/cli/support/devices.js';
import { QmpClient } from '../../src/cli/support/qmp-client.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { Fakes } from '../daemon/fakes.js';
import { makeTempDir } from '../support/temp-dir.js';
import { isVduseError } from '../support/vduse-error.js';

const directory = makeTempDir();

describe('with a storage daemon', () => {
  const path = join(directory, 'daemon.sock');
  const fakes = new Fakes();
  const daemon = new StorageDaemon(fakes.factories);
  after(() => daemon.close());

  it('asks, commands, and is told why not', async () => {
    await daemon.startMonitor(path);
    await daemon.addNode({ driver: 'file', nodeName: 'disk', filename: '/images/a', readOnly: true });
    const client = await QmpClient.connect(path);
    assert.ok(client);
    try {
      assert.deepEqual(await queryNode(client), {
        nodeName: 'disk',
        image: '/images/a',
        size: 1 << 20,
        readOnly: true,
      });
      await assert.rejects(client.execute('block_resize', { 'node-name': 'disk', size: 1 << 21 }), {
        message: 'Image is read-only',
      });
      await client.execute('quit');
      assert.ok(daemon.shutdownSignal.aborted);
    } finally {
      client.close();
    }
  });
});

describe('with a server that', () => {
  const servers: Server[] = [];
  const sockets = new Set<Socket>();
  after(() => {
    for (const socket of sockets) {
      socket.destroy();
    }
    for (const server of servers) {
      server.close();
    }
  });

  async function serve(name: string, onClient: (socket: Socket) => void): Promise<string> {
    const path = join(directory, name);
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on('error', () => undefined);
      onClient(socket);
    });
    servers.push(server);
    server.listen(path);
    await once(server, 'listening');
    return path;
  }

  it('is not there', async () => {
    assert.equal(await QmpClient.connect(join(directory, 'absent.sock')), undefined);
  });

  it('does not greet in time', async () => {
    const path = await serve('silent.sock', () => undefined);
    await assert.rejects(QmpClient.connect(path, { timeoutMs: 50 }), isVduseError('TIMEOUT'));
  });

  it('speaks something else', async () => {
    const path = await serve('other.sock', (socket) => socket.write('{"hello": 1}\n'));
    await assert.rejects(QmpClient.connect(path, { timeoutMs: 5000 }), isVduseError('PROTOCOL'));
  });

  it('answers too late: the next command gets its own answer', async () => {
    let asked = 0;
    const path = await serve('late.sock', (socket) => {
      socket.write('{"QMP": {}}\n');
      socket.on('data', (data) => {
        for (const line of data.toString().trim().split('\n')) {
          const { execute } = JSON.parse(line) as { execute: string };
          const answer = `{"return": "${execute}"}\n`;
          asked++;
          if (execute === 'slow') {
            return;
          }
          socket.write(asked === 3 ? `{"return": "slow"}\n${answer}` : answer);
        }
      });
    });
    const client = await QmpClient.connect(path, { timeoutMs: 200 });
    assert.ok(client);
    try {
      await assert.rejects(client.execute('slow'), isVduseError('TIMEOUT'));
      assert.equal(await client.execute('next'), 'next');
      assert.equal(await client.execute('last'), 'last');
    } finally {
      client.close();
    }
  });

  it('hangs up', async () => {
    const path = await serve('end.sock', (socket) => socket.end());
    await assert.rejects(QmpClient.connect(path, { timeoutMs: 5000 }), isVduseError('ABORTED'));
  });

  it('sends events and answers in pieces', async () => {
    const path = await serve('pieces.sock', (socket) => {
      socket.write('{"QMP": {}}\n');
      socket.on('data', () => {
        socket.write('{"event": "X"}\n{"ret');
        setTimeout(() => socket.write('urn": {"a": 1}}\n'), 20);
      });
    });
    const client = await QmpClient.connect(path, { timeoutMs: 5000 });
    assert.ok(client);
    assert.deepEqual(await client.execute('anything'), { a: 1 });
    client.close();
  });
});
