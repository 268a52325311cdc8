/** What the log says of a server that goes away: when, why, what is done about it, and how long it was away. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import {
  ConnectionLog,
  ConnectionReporter,
} from '../../../src/block/drivers/nbd-client/connection-reports.js';
import { BlockOp } from '../../../src/block/engine.js';
import { EngineClient } from '../../../src/block/engine-client.js';
import { NbdDisk } from '../../support/nbd-disk.js';
import { recordingLogger } from '../../support/recording-logger.js';
import {
  allFlags,
  answerZeroes,
  type ScriptedOptions,
  ScriptedServer,
} from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const folder = makeTempDir();
const warn = 40;
const error = 50;
const info = 30;

interface Line {
  readonly level: number;
  readonly node: string;
  readonly msg: string;
}

async function start(
  t: TestContext,
  reconnectDelay: number,
  script: ScriptedOptions = {},
): Promise<{ server: ScriptedServer; disk: NbdDisk; lines: () => Line[] }> {
  const server = await new ScriptedServer(script).listen(folder);
  t.after(() => server.stop());
  const { logger, lines } = recordingLogger();
  const disk = await NbdDisk.open({ server: server.address, reconnectDelay }, { logger });
  t.after(() => disk.close());
  return { server, disk, lines: () => lines.map((line) => JSON.parse(line) as Line) };
}

const levels = (lines: readonly Line[]): number[] => lines.map(({ level }) => level);

test('a server that comes back: lost, one line for many attempts, and how long it was away', async (t) => {
  const { server, disk, lines } = await start(t, 30);
  await disk.read(0, 512);
  assert.deepEqual(lines(), []);
  await server.stop();
  const read = disk.read(0, 512);
  await until('the first attempt', () => lines().length === 2);
  // The delays between attempts add up: 0.1 s, 0.2 s, 0.4 s.
  await new Promise((resolve) => setTimeout(resolve, 500));
  await server.restart();
  await read;
  await until('the last line', () => lines().length === 3);
  const [lost, attempt, back] = lines();
  assert.deepEqual(levels(lines()), [warn, warn, info]);
  assert.equal(lost.node, 'n');
  assert.match(
    lost.msg,
    /^lost the connection to 'nbd\+unix:\/\/\?socket=.*': (the server closed it|.*reset.*); requests wait for up to 30 s \(reconnect-delay\)/,
  );
  assert.match(
    attempt.msg,
    /^cannot connect to 'nbd.*': .*(refused|no such file).*; 1 attempt in \d+\.\d s, trying on for \d+\.\d s$/,
  );
  assert.match(
    back.msg,
    /^connected to 'nbd.*' again: it was away for \d+\.\d s, after \d+ failed attempts$/,
  );
});

test('a server that does not come back is given up, once', async (t) => {
  const { server, disk, lines } = await start(t, 1, { onRequest: () => undefined });
  const read = assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await until('the request', () => server.requests.length === 1);
  await server.stop();
  await read;
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await until('the lines', () => lines().length >= 3);
  assert.deepEqual(levels(lines()), [warn, warn, error]);
  assert.match(
    lines()[2].msg,
    /^gave up on 'nbd.*' after \d\.\d s: requests fail with EIO, and each later one/,
  );
});

test('without reconnect-delay there is nothing to give up', async (t) => {
  const { server, disk, lines } = await start(t, 0);
  await disk.read(0, 512);
  await server.stop();
  await until('the line', () => lines().length > 0);
  assert.deepEqual(levels(lines()), [warn]);
  assert.match(lines()[0].msg, /reconnect-delay=0/);
});

test('a server that breaks the protocol', async (t) => {
  const { disk, lines } = await start(t, 30, {
    onRequest: (_request, socket) => socket.write('nonsense, nonsense'),
  });
  await assert.rejects(disk.read(0, 512), { errnoName: 'EIO' });
  await until('the line', () => lines().length > 0);
  assert.deepEqual(levels(lines()), [error]);
  assert.match(
    lines()[0].msg,
    /broke the protocol: a reply does not begin with its magic number; it is not spoken/,
  );
});

test('connections of one server that go together are one line, and back when all are', async (t) => {
  const onRequest: ScriptedOptions['onRequest'] = (request, socket) => answerZeroes(request, socket, true);
  const { server, disk, lines } = await start(t, 30, { flags: allFlags, onRequest });
  const second = new EngineClient(disk.node);
  t.after(() => second.close(1000));
  const readBoth = async (): Promise<void> => {
    const request = { op: BlockOp.READ, offset: 0, length: 512, address: disk.memoryAddress + 4096 };
    await Promise.all([disk.read(0, 512), second.request(request)]);
  };
  await readBoth();
  await server.stop();
  await server.restart();
  await readBoth();
  await until('the last line', () => lines().some(({ level }) => level === info));
  const all = lines();
  assert.equal(all.filter(({ msg }) => msg.startsWith('lost')).length, 1);
  assert.equal(all.filter(({ level }) => level === info).length, 1);
});

test('a node that waits for its server at the start says so once', async (t) => {
  const server = await new ScriptedServer().listen(folder);
  await server.stop();
  const { logger, lines } = recordingLogger();
  const opening = NbdDisk.open({ server: server.address, openTimeout: 30 }, { logger });
  await until('the line', () => lines.length > 0);
  await new Promise((resolve) => setTimeout(resolve, 600));
  await server.restart();
  t.after(() => server.stop());
  await (await opening).close();
  assert.equal(lines.length, 1);
  assert.match(lines[0], /cannot open 'nbd.*' yet: .*no such file.*; trying for 30 s \(open-timeout\)/);
});

test('attempts without end are a line in ten seconds', async (t) => {
  const { logger, lines } = recordingLogger();
  const log = new ConnectionLog({
    node: 0x7fff_0001,
    nodeName: 'n',
    uri: 'nbd://server',
    logger,
    reconnectDelayMs: 1000,
    isOnlyOnce: false,
    explain: () => 'the certificate has expired',
  });
  t.after(() => log.close());
  const reporter = new ConnectionReporter(0x7fff_0001);
  for (let n = 0; n < 1000; n++) {
    reporter.onFailed('refused');
  }
  reporter.onGaveUp();
  reporter.onGaveUp();
  reporter.onReady();
  await until('the last line', () => lines.length === 3);
  assert.match(lines[0], /cannot connect to 'nbd:\/\/server': the certificate has expired; 1 attempt/);
  assert.match(lines[2], /away for .*, after 1000 failed attempts/);
});
