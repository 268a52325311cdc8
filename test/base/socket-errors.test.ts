import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection, createServer, type NetConnectOpts } from 'node:net';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { SystemCallError } from '../../src/base/errors.js';
import { connectHint, listenHint, systemReason } from '../../src/base/socket-errors.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();

async function errorOfConnecting(where: NetConnectOpts): Promise<unknown> {
  const [error] = (await once(createConnection(where).on('connect', assert.fail), 'error')) as unknown[];
  return error;
}

describe('errors of sockets', () => {
  it('are told without the call and the path that Node adds', async () => {
    const error = await errorOfConnecting({ path: join(directory, 'none') });
    assert.equal(systemReason(error), 'no such file or directory');
    assert.match(connectHint(error) ?? '', /no such socket/);
    assert.equal(systemReason(new Error('another one')), 'another one');
    assert.equal(connectHint(new Error('another one')), undefined);
  });

  it('are the same whether there is one address or several', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const bound = server.address();
    assert.ok(typeof bound === 'object' && bound !== null);
    server.close();
    await once(server, 'close');
    const error = await errorOfConnecting({ host: '127.0.0.1', port: bound.port });
    for (const one of [error, new AggregateError([error, error], '')]) {
      assert.equal(systemReason(one), 'connection refused');
      assert.match(connectHint(one) ?? '', /^Nobody listens there/);
    }
  });

  it('say what to do about a place to listen at', () => {
    const failed = (name: string, errno: number) => new SystemCallError('bind', errno, { name, text: name });
    assert.equal(listenHint('a/b/sock', failed('ENOENT', 2)), 'Make its directory: mkdir -p a/b');
    assert.match(listenHint('/a/sock', failed('EACCES', 13)) ?? '', /may not write to \/a:/);
    assert.match(listenHint(80, failed('EACCES', 13)) ?? '', /below 1024/);
    assert.match(listenHint(10809, failed('EADDRINUSE', 98)) ?? '', /`ss -ltnp sport = :10809`/);
    assert.equal(listenHint(undefined, failed('ENOENT', 2)), undefined);
    assert.equal(listenHint('/a/sock', new Error('what else')), undefined);
  });
});
