/** NBD under virtio-blk devices: on queue threads, to and from guest memory in pieces. */
import assert from 'node:assert/strict';
import { after, describe, type TestContext, test } from 'node:test';
import { type Logger, silentLogger } from '../../../src/base/log.js';
import { Command } from '../../../src/base/nbd-protocol.js';
import { openBlockNode } from '../../../src/block/open.js';
import { BLK_S, BLK_T } from '../../../src/device/blk/blk-protocol.js';
import { QueueThreadPool } from '../../../src/worker/queue-thread-pool.js';
import { type BlkSetup, startBlk } from '../../support/blk.js';
import { Random } from '../../support/random.js';
import { recordingLogger } from '../../support/recording-logger.js';
import { allFlags, answerZeroes, dataChunk, ScriptedServer } from '../../support/scripted-nbd-server.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const folder = makeTempDir();
const size = 4 << 20;
const pool = new QueueThreadPool({ size: 2 });
after(() => pool.close());

async function start(
  t: TestContext,
  flags: number,
  queueCount: number,
  options: { logger?: Logger; reconnectDelay?: number } = {},
): Promise<{ server: ScriptedServer; setup: BlkSetup }> {
  const bytes = Buffer.alloc(size);
  const server = await new ScriptedServer({
    size,
    flags,
    onRequest: (request, socket) => {
      const { command, offset, length } = request;
      if (command === Command.READ) {
        socket.write(dataChunk(request, offset, bytes.subarray(offset, offset + length)));
        return;
      }
      if (command === Command.WRITE) {
        request.payload.copy(bytes, offset);
      }
      answerZeroes(request, socket, true);
    },
  }).listen(folder);
  t.after(() => server.stop());
  const { logger = silentLogger, reconnectDelay = 0 } = options;
  const node = await openBlockNode(
    { driver: 'nbd', nodeName: 'n', server: server.address, discard: 'unmap', reconnectDelay },
    undefined,
    { secret: () => assert.fail('there are no secrets'), logger },
  );
  const setup = await startBlk({ node, hosts: pool, device: { queueCount } });
  return { server, setup };
}

describe('devices on an NBD export', () => {
  test('requests in pieces of guest memory', async (t) => {
    const { setup } = await start(t, allFlags, 1);
    const random = new Random(1);
    for (let n = 0; n < 40; n++) {
      const sectors = random.between(1, 64);
      const sector = random.between(0, 1000);
      const out = Uint8Array.from({ length: sectors * 512 }, (_, at) => at * 31 + n);
      const split = { random, pieces: 12 };
      assert.equal((await setup.client.request({ type: BLK_T.OUT, sector, out, split })).status, BLK_S.OK);
      const { status, data } = await setup.client.request({ type: BLK_T.IN, sector, in: out.length, split });
      assert.equal(status, BLK_S.OK);
      assert.ok(Buffer.from(data).equals(Buffer.from(out)));
    }
    assert.equal((await setup.client.flush()).status, BLK_S.OK);
    await setup.close();
  });

  test('a connection a queue where the server allows that, one for all where not', async (t) => {
    for (const [flags, connections] of [
      [allFlags, 3],
      [allFlags & ~(1 << 8), 1],
    ]) {
      const { server, setup } = await start(t, flags, 3);
      const out = new Uint8Array(4096).fill(7);
      const all = await Promise.all(
        Array.from({ length: 60 }, (_, n) => setup.client.write(n * 4096, out, n % 3)),
      );
      assert.ok(all.every(({ status }) => status === BLK_S.OK));
      assert.equal(server.connections, connections);
      await setup.close();
    }
  });

  test('what queue threads see of an outage is in the log', async (t) => {
    const { logger, lines } = recordingLogger();
    const { server, setup } = await start(t, allFlags, 2, { logger, reconnectDelay: 30 });
    const out = new Uint8Array(4096).fill(7);
    const write = () => Promise.all([0, 1].map((queue) => setup.client.write(queue * 4096, out, queue)));
    await write();
    await server.stop();
    await server.restart();
    assert.ok((await write()).every(({ status }) => status === BLK_S.OK));
    await until('the last line', () => lines.some((line) => line.includes('again: it was away for')));
    assert.match(lines[0], /lost the connection to/);
    await setup.close();
  });
});
