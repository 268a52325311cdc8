/** A queue thread that is stuck in a call which blocks: whoever waits for it is told in time, and it may come back. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { type BlkSetup, startBlk } from '../support/blk.js';
import { makeTestPool } from '../support/leftovers.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until, within } from '../support/within.js';

const directory = makeTempDir();
const pool = makeTestPool({ size: 1, startTimeoutMs: 300 });

/** A pipe that is full: who writes to it waits until `empty` is called. */
function fullPipe(): { fd: number; empty: () => void; close: () => void } {
  const path = join(directory, `full-${Math.random()}`);
  execFileSync('mkfifo', [path]);
  const fd = openSync(path, 'r+');
  const filler = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
  const piece = new Uint8Array(4096);
  try {
    for (;;) {
      writeSync(filler, piece);
    }
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
  }
  closeSync(filler);
  return {
    fd,
    empty: () => void readSync(fd, new Uint8Array(65536)),
    close: () => closeSync(fd),
  };
}

async function start(): Promise<BlkSetup> {
  const node = await openBlockNode({ driver: 'null-co', nodeName: 'n', readZeroes: true });
  return startBlk({ node, hosts: pool });
}

/** A device whose thread hangs in the interrupt of its first request. */
async function startStuck(fd: number): Promise<BlkSetup> {
  const setup = await start();
  await setup.frontEnd.quiesce();
  const activation = setup.frontEnd.activation();
  const queues = activation.queues.map((queue) => ({ ...queue, notifier: { kind: 'eventfd', fd } as const }));
  await setup.device.activate({ ...activation, queues });
  void setup.client.read(0, 512);
  const [queue] = setup.frontEnd.queues;
  // Its index is published before the interrupt.
  await until('the used element', () => queue.usedRing()[2] !== 0);
  return setup;
}

test('a stop is given up in time, nothing happens to the ring afterwards, and the next device is served', async () => {
  const pipe = fullPipe();
  const stuck = await startStuck(pipe.fd);
  const [queue] = stuck.frontEnd.queues;
  // Taken by nobody: the thread does not come to it before it is too late.
  const late = queue.submit({ readable: [new Uint8Array(16)], writable: [512, 1] });
  const started = performance.now();
  assert.equal((await stuck.frontEnd.quiesce(400)).drained, false);
  const took = performance.now() - started;
  assert.ok(took >= 390 && took < 1500, `the stop took ${took} ms of 400`);

  const other = await start().catch((error: unknown) => error as Error & { code: string });
  assert.ok(other instanceof Error);
  assert.equal(other.code, 'TIMEOUT');
  assert.match(other.message, /^queue thread 'queues-0' does not answer$/);

  const ring = queue.usedRing();
  const data = late.writableBytes();
  pipe.empty();
  await sleep(30);
  assert.deepEqual(queue.usedRing(), ring);
  assert.deepEqual(late.writableBytes(), data);
  const next = await start();
  assert.equal((await within(3000, 'a reply', () => next.client.read(0, 512))).status, BLK_S.OK);
  await next.close();
  await stuck.frontEnd.close();
  pipe.close();
});

test('a start that was not answered in time is stopped by the next stop', async () => {
  const pipe = fullPipe();
  const waiting = await start();
  await waiting.frontEnd.quiesce();
  const stuck = await startStuck(pipe.fd);
  await assert.rejects(waiting.frontEnd.activate(), { code: 'TIMEOUT' });
  assert.equal((await waiting.frontEnd.quiesce(50)).drained, false);
  const reply = waiting.client.read(0, 512);
  pipe.empty();
  assert.equal(
    await Promise.race([reply, sleep(30)]),
    undefined,
    'the queue that was given up serves nothing',
  );
  await waiting.frontEnd.activate();
  assert.equal((await within(3000, 'a reply', () => reply)).status, BLK_S.OK);
  await stuck.close();
  await waiting.close();
  pipe.close();
});
