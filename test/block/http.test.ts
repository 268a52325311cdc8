/** The http block driver against small servers that behave, and others that do not. */
import assert from 'node:assert/strict';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { afterEach, describe, test } from 'node:test';
import type { BlockDevice } from '../../src/block/block-device.js';
import { HttpClient } from '../../src/block/drivers/http/http-client.js';
import { HttpDevice } from '../../src/block/drivers/http/http-device.js';
import { HttpImage } from '../../src/block/drivers/http/http-image.js';
import { openHttpNode } from '../../src/block/drivers/http/http-node.js';
import type { HttpNodeOptions } from '../../src/block/node.js';
import { recordingLogger } from '../support/recording-logger.js';
import { isVduseError } from '../support/vduse-error.js';

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

interface TestServer {
  readonly url: string;
  readonly requests: IncomingMessage[];
  readonly sockets: Set<Socket>;
}

const servers: Server[] = [];

async function serve(handler: Handler): Promise<TestServer> {
  const requests: IncomingMessage[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((request, response) => {
    requests.push(request);
    handler(request, response);
  });
  server.on('connection', (socket) => sockets.add(socket));
  servers.push(server);
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
  const address = server.address();
  assert(address !== null && typeof address === 'object');
  return { url: `http://127.0.0.1:${address.port}/disk.img`, requests, sockets };
}

afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((closed) => server.close(closed));
  }
});

function rangeOf(request: IncomingMessage): [first: number, last: number] {
  const match = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
  assert(match !== null, 'a request without a range');
  return [Number(match[1]), Number(match[2])];
}

/** Answers ranges as RFC 9110 has them. */
function answerRange(
  request: IncomingMessage,
  response: ServerResponse,
  file: Buffer,
  headers: Record<string, string> = {},
): void {
  const [first, last] = rangeOf(request);
  const part = file.subarray(first, last + 1);
  if (part.length === 0) {
    response.writeHead(416, { 'content-range': `bytes */${file.length}`, ...headers }).end();
    return;
  }
  response
    .writeHead(206, {
      'content-range': `bytes ${first}-${first + part.length - 1}/${file.length}`,
      'content-length': part.length,
      etag: '"one"',
      ...headers,
    })
    .end(part);
}

const file = Buffer.from(Uint8Array.from({ length: 1 << 20 }, (_, n) => (n * 7 + (n >>> 8)) & 0xff));
const quiet = { secret: (id: string) => Buffer.from(`secret of ${id}`), logger: recordingLogger().logger };

async function openDevice(
  url: string,
  options: { readahead?: number; timeoutMs?: number; logger?: typeof quiet.logger } = {},
): Promise<BlockDevice> {
  const { readahead = 0, timeoutMs = 5000, logger = quiet.logger } = options;
  const client = new HttpClient({
    url: new URL(url),
    headers: {},
    timeoutMs,
    verifyCertificate: true,
    authorities: [],
  });
  try {
    const image = await HttpImage.open({ client, name: 'image', logger, backOffMs: 1 });
    return new HttpDevice(image, { readahead, onClose: () => client.close() });
  } catch (error) {
    client.close();
    throw error;
  }
}

async function read(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length, 0xee);
  await device.read(offset, buffer);
  return buffer;
}

describe('http images', () => {
  test('read what the server has, on connections that are kept', async () => {
    const server = await serve((request, response) => answerRange(request, response, file));
    const device = await openDevice(server.url);
    assert.equal(device.size, file.length);
    for (const [offset, length] of [
      [0, 512],
      [512, 4096],
      [file.length - 512, 512],
      [100_352, 65_536],
    ]) {
      assert.deepEqual(await read(device, offset, length), file.subarray(offset, offset + length));
    }
    assert.equal(server.sockets.size, 1);
    await device.close?.();
  });

  test('an odd size is rounded up, with zeroes', async () => {
    const odd = file.subarray(0, 1000);
    const server = await serve((request, response) => answerRange(request, response, odd));
    const device = await openDevice(server.url);
    assert.equal(device.size, 1024);
    assert.deepEqual(await read(device, 512, 512), Buffer.concat([odd.subarray(512), Buffer.alloc(24)]));
    await device.close?.();
  });

  test('an empty file is an empty disk', async () => {
    const server = await serve((request, response) => answerRange(request, response, Buffer.alloc(0)));
    const device = await openDevice(server.url);
    assert.equal(device.size, 0);
    await device.close?.();
  });

  test('readahead serves a reader from front to back with few requests, and no other reader', async () => {
    const server = await serve((request, response) => answerRange(request, response, file));
    const device = await openDevice(server.url, { readahead: 256 << 10 });
    for (let offset = 0; offset < file.length; offset += 4096) {
      assert.deepEqual(await read(device, offset, 4096), file.subarray(offset, offset + 4096));
    }
    assert.ok(server.requests.length <= 7, `${server.requests.length} requests`);
    server.requests.length = 0;
    for (const offset of [8192, 40_960, 4096, 204_800]) {
      await read(device, 524_288 + offset, 512);
    }
    for (const request of server.requests) {
      const [first, last] = rangeOf(request);
      assert.equal(last - first, 511);
    }
    await device.close?.();
  });

  test('many reads at once use eight connections', async () => {
    const server = await serve((request, response) => answerRange(request, response, file));
    const device = await openDevice(server.url);
    const offsets = Array.from({ length: 64 }, (_, n) => n * 8192);
    const parts = await Promise.all(offsets.map((offset) => read(device, offset, 8192)));
    assert.deepEqual(Buffer.concat(parts), file.subarray(0, 64 * 8192));
    assert.ok(server.sockets.size <= 8, `${server.sockets.size} connections`);
    await device.close?.();
  });

  test('a server that fails for a while is asked again, from where it stopped', async () => {
    let failures = 0;
    const server = await serve((request, response) => {
      const [first, last] = rangeOf(request);
      if (last === 0) {
        answerRange(request, response, file);
        return;
      }
      failures++;
      if (failures === 1) {
        response.writeHead(503).end();
      } else if (failures === 2) {
        request.socket.destroy();
      } else if (failures === 3) {
        // Half of it, and then the connection ends.
        response.writeHead(206, {
          'content-range': `bytes ${first}-${last}/${file.length}`,
          'content-length': last - first + 1,
          etag: '"one"',
        });
        response.write(file.subarray(first, first + 1000), () => request.socket.destroy());
      } else {
        assert.equal(first, 5096);
        answerRange(request, response, file);
      }
    });
    const device = await openDevice(server.url);
    assert.deepEqual(await read(device, 4096, 4096), file.subarray(4096, 8192));
    await device.close?.();
  });

  test('a server that stays away is an error after five attempts', async () => {
    const server = await serve((request, response) => {
      if (rangeOf(request)[1] === 0) {
        answerRange(request, response, file);
      } else {
        response.writeHead(500).end('not now');
      }
    });
    const device = await openDevice(server.url);
    await assert.rejects(read(device, 0, 512), /HTTP status 500/);
    assert.equal(server.requests.length, 6);
    await device.close?.();
  });

  test('closing ends reads that wait for a silent server', async () => {
    const server = await serve((request, response) => {
      if (rangeOf(request)[1] === 0) {
        answerRange(request, response, file);
      }
    });
    const device = await openDevice(server.url, { timeoutMs: 600_000 });
    const waiting = assert.rejects(read(device, 0, 512), isVduseError('ABORTED', /being closed/));
    await new Promise((soon) => setTimeout(soon, 50));
    await device.close?.();
    await waiting;
  });

  for (const [what, change] of [
    ['ETag', { etag: '"two"' }],
    ['Last-Modified', { 'last-modified': 'Thu, 01 Jan 2026 00:00:00 GMT' }],
  ] as const) {
    test(`an image whose ${what} changes fails for good, with a log line`, async () => {
      let headers: Record<string, string> = {};
      const server = await serve((request, response) => answerRange(request, response, file, headers));
      const { logger, lines } = recordingLogger();
      const device = await openDevice(server.url, { logger });
      await read(device, 0, 512);
      headers = change;
      await assert.rejects(read(device, 0, 512), isVduseError('PROTOCOL', /has changed/));
      await assert.rejects(read(device, 0, 512), isVduseError('PROTOCOL', /has changed/));
      headers = {};
      await assert.rejects(read(device, 0, 512), isVduseError('PROTOCOL', /has changed/));
      assert.equal(lines.filter((line) => line.includes('has changed on the server')).length, 1);
      await device.close?.();
    });
  }

  test('an image that becomes shorter fails', async () => {
    let content = file;
    const server = await serve((request, response) => answerRange(request, response, content));
    const device = await openDevice(server.url);
    content = file.subarray(0, 4096);
    await assert.rejects(read(device, 8192, 512), isVduseError('PROTOCOL', /has changed/));
    await device.close?.();
  });

  test('redirections are followed, without the password to another server', async () => {
    const target = await serve((request, response) => answerRange(request, response, file));
    const server = await serve((_request, response) =>
      response.writeHead(302, { location: target.url }).end(),
    );
    const node = await openHttpNode(options(server.url.replace('//', '//me:hidden@')), quiet);
    assert.equal(node.size, file.length);
    assert.match(server.requests[0].headers.authorization ?? '', /^Basic /);
    assert.equal(target.requests[0].headers.authorization, undefined);
    await node.close();
  });
});

describe('http servers that do not behave', () => {
  const cases: [what: string, handler: Handler, code: string, text: RegExp][] = [
    [
      'ignores ranges and sends without end',
      (request, response) => {
        response.writeHead(200, { 'content-length': String(2 ** 40) });
        const more = (): void => {
          while (!request.socket.destroyed && response.write(file)) {
            // As long as it takes.
          }
          response.once('drain', more);
        };
        more();
      },
      'NOT_SUPPORTED',
      /does not support 'range'/,
    ],
    [
      'answers another range',
      (_request, response) =>
        response.writeHead(206, { 'content-range': 'bytes 5-5/1000', 'content-length': 1 }).end('x'),
      'PROTOCOL',
      /another range/,
    ],
    [
      'tells no size',
      (_request, response) => response.writeHead(206, { 'content-range': 'bytes 0-0/*' }).end('x'),
      'PROTOCOL',
      /another range/,
    ],
    [
      'tells a size beyond all numbers',
      (_request, response) =>
        response.writeHead(206, { 'content-range': 'bytes 0-0/99999999999999999999' }).end('x'),
      'PROTOCOL',
      /another range/,
    ],
    [
      'sends more than it announced',
      (_request, response) => {
        response.writeHead(206, { 'content-range': 'bytes 0-0/1000' });
        response.end(Buffer.alloc(100_000));
      },
      'PROTOCOL',
      /more than it was asked for/,
    ],
    [
      'compresses',
      (_request, response) =>
        response.writeHead(206, { 'content-range': 'bytes 0-0/1000', 'content-encoding': 'gzip' }).end('x'),
      'PROTOCOL',
      /another range/,
    ],
    [
      'redirects in circles',
      (_request, response) => response.writeHead(302, { location: '/disk.img' }).end(),
      'PROTOCOL',
      /redirects more than 5 times/,
    ],
    [
      'redirects to a file of this machine',
      (_request, response) => response.writeHead(302, { location: 'file:///etc/passwd' }).end(),
      'PROTOCOL',
      /redirects to what is not/,
    ],
    ['has no such file', (_request, response) => response.writeHead(404).end(), 'NOT_FOUND', /HTTP 404/],
    ['refuses', (_request, response) => response.writeHead(401).end(), 'PERMISSION_DENIED', /HTTP 401/],
    [
      'speaks something else',
      (request) => request.socket.end('SSH-2.0-OpenSSH_9.2\r\n'),
      'PROTOCOL',
      /does not speak HTTP/,
    ],
    [
      'sends headers without end',
      (request) => {
        request.socket.write(`HTTP/1.1 206 Partial Content\r\n${'x: y\r\n'.repeat(100_000)}`);
      },
      'PROTOCOL',
      /does not speak HTTP/,
    ],
  ];
  test('is not there', async () => {
    const { url } = await serve((request) => request.socket.end());
    const [server] = servers.splice(-1);
    await new Promise((closed) => server.close(closed));
    await assert.rejects(openDevice(url), {
      message: "cannot open 'image': connection refused",
      hint: /^Nobody listens there: check the address/,
    });
  });

  for (const [what, handler, code, text] of cases) {
    test(what, async () => {
      const server = await serve(handler);
      await assert.rejects(openDevice(server.url), isVduseError(code, text));
    });
  }

  test('drips: an attempt has a time, and there are five of them', async () => {
    const server = await serve((request, response) => {
      const [first, last] = rangeOf(request);
      response.writeHead(206, { 'content-range': `bytes ${first}-${last}/1048576`, etag: '"one"' });
      if (last === 0) {
        response.end('x');
      } else {
        response.write('x');
      }
    });
    const device = await openDevice(server.url, { timeoutMs: 300 });
    await assert.rejects(read(device, 0, 512), /no whole answer within 0.3 s/);
    assert.deepEqual(
      server.requests.slice(1).map((request) => rangeOf(request)[0]),
      [0, 1, 2, 3, 4],
    );
    await device.close?.();
  });
});

function options(url: string, more: Partial<HttpNodeOptions> = {}): HttpNodeOptions {
  return { driver: 'http', nodeName: 'web', url, readOnly: true, ...more };
}

describe('the options of http nodes', () => {
  test('names, passwords and cookies go to the server and nowhere else', async () => {
    const server = await serve((request, response) => answerRange(request, response, file));
    const node = await openHttpNode(
      options(`${server.url}?ticket=4711`, { username: 'me', passwordSecret: 'pw', cookieSecret: 'jar' }),
      quiet,
    );
    const [{ headers, url }] = server.requests;
    assert.equal(url, '/disk.img?ticket=4711');
    assert.equal(headers.authorization, `Basic ${Buffer.from('me:secret of pw').toString('base64')}`);
    assert.equal(headers.cookie, 'secret of jar');
    assert.equal(node.filename, `${server.url}?...`);
    assert.equal(node.readOnly, true);
    await node.close();
  });

  test("what can't be is refused, and told without secrets", async () => {
    const refused: [HttpNodeOptions, string, RegExp][] = [
      [options('http://127.0.0.1:1/', { readOnly: false }), 'IMAGE_READ_ONLY', /does not support writes/],
      [options('https://u:hidden@host/'), 'INVALID_ARGUMENT', /does not start with 'http:/],
      [options('no url'), 'INVALID_ARGUMENT', /does not start with 'http:/],
      [options('http://h/', { readahead: 1000 }), 'INVALID_ARGUMENT', /readahead 1000/],
      [options('http://h/', { timeout: 0 }), 'INVALID_ARGUMENT', /timeout 0/],
      [options('http://h/', { cookie: 'a', cookieSecret: 'b' }), 'INVALID_ARGUMENT', /together/],
      [options('http://h/', { cookie: 'a\r\nx: y' }), 'INVALID_ARGUMENT', /no HTTP header/],
    ];
    for (const [given, code, text] of refused) {
      await assert.rejects(openHttpNode(given, quiet), (error) => {
        assert.doesNotMatch(String(error), /hidden/);
        return isVduseError(code, text)(error);
      });
    }
  });
});
