/** Queue threads: how queues are spread over them, and what becomes of a thread that dies. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { EngineSpec } from '../../src/block/engine.js';
import type { BlockNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { type BlkSetup, startBlk } from '../support/blk.js';
import { openFdCount } from '../support/resources.js';
import { until } from '../support/within.js';

const pools: QueueThreadPool[] = [];
after(() => Promise.all(pools.map((pool) => pool.close())));

function makePool(size: number, pollUs = 0): QueueThreadPool {
  const pool = new QueueThreadPool({ size, pollUs });
  pools.push(pool);
  return pool;
}

function nullNode(): Promise<BlockNode> {
  return openBlockNode({ driver: 'null-co', nodeName: 'n', readZeroes: true });
}

/** Cpus_allowed_list of each thread of this process. */
function threadAffinities(): string[] {
  return readdirSync('/proc/self/task').map((task) => {
    const status = readFileSync(`/proc/self/task/${task}/status`, 'latin1');
    return /^Cpus_allowed_list:\s*(.*)$/m.exec(status)?.[1] ?? '';
  });
}

async function names(pool: QueueThreadPool, count: number, threads?: string[]): Promise<string[]> {
  return (
    await pool.assign(
      count,
      threads?.map((name) => ({ name })),
    )
  ).map(({ name }) => name);
}

describe('spreading queues', () => {
  test('over the pool, going on where the last device ended', async () => {
    const pool = makePool(3);
    assert.deepEqual(await names(pool, 2), ['queues-0', 'queues-1']);
    assert.deepEqual(await names(pool, 2), ['queues-2', 'queues-0']);
    assert.deepEqual(await names(pool, 5), ['queues-1', 'queues-2', 'queues-0', 'queues-1', 'queues-2']);
    assert.deepEqual(pool.threadNames.sort(), ['queues-0', 'queues-1', 'queues-2']);
  });

  test('each on its processors', async () => {
    const pool = makePool(2);
    const before = new Set(threadAffinities());
    await pool.assign(1, [{ name: 'pinned', cpus: [0] }]);
    assert.ok(!before.has('0') || availableParallelism() === 1);
    assert.ok(threadAffinities().includes('0'));
    await assert.rejects(pool.assign(1, [{ name: 'nowhere', cpus: [8000] }]), {
      name: 'VduseError',
      message: /^cannot start a thread for queues: sched_setaffinity .*8000/,
      hint: /`lscpu`/,
    });
  });

  test('over named threads in turn, which names share', async () => {
    const pool = makePool(1);
    assert.deepEqual(await names(pool, 5, ['a', 'b']), ['a', 'b', 'a', 'b', 'a']);
    assert.deepEqual(await names(pool, 1, ['b']), ['b']);
    assert.deepEqual(await names(pool, 1, []), ['queues-0']);
    assert.deepEqual(pool.threadNames.sort(), ['a', 'b', 'queues-0']);
    const [first, second] = await pool.assign(2, [{ name: 'a' }, { name: 'a' }]);
    assert.equal(first, second);
  });

  test('threads start when they are first wanted, two askers at once get the same', async () => {
    const pool = makePool(8);
    assert.deepEqual(pool.threadNames, []);
    const [one, two] = await Promise.all([pool.assign(1, [{ name: 'x' }]), pool.assign(1, [{ name: 'x' }])]);
    assert.equal(one[0], two[0]);
    assert.deepEqual(pool.threadNames, ['x']);
  });
});

for (const pollUs of [0, 200]) {
  test(`many queues on few threads are all served (polling ${pollUs} us)`, async () => {
    const pool = makePool(2, pollUs);
    const setup = await startBlk({
      node: await nullNode(),
      hosts: pool,
      device: { queueCount: 16, queueSize: 8 },
    });
    const reads = Array.from({ length: 640 }, (_, n) => setup.client.read(n * 512, 512, n % 16));
    for (const { status, data } of await Promise.all(reads)) {
      assert.equal(status, BLK_S.OK);
      assert.ok(data.every((byte) => byte === 0));
    }
    assert.equal(setup.device.statistics.reads, 640);
    assert.equal(pool.threadNames.length, 2);
    await setup.close();
  });
}

test('a ring that can not be is an error of the start, and the thread goes on', async () => {
  const pool = makePool(1);
  const good = await startBlk({ node: await nullNode(), hosts: pool });
  const bad = await startBlk({ node: await nullNode(), hosts: pool });
  await bad.frontEnd.quiesce();
  const activation = bad.frontEnd.activation();
  const queues = activation.queues.map((queue) => ({ ...queue, descriptorAddress: 2 ** 45 }));
  await assert.rejects(bad.device.activate({ ...activation, queues }), {
    code: 'PROTOCOL',
    message: /^descriptor table at \d+: its \d+ bytes do not lie in mapped memory$/,
  });
  assert.equal((await bad.device.quiesce({ timeoutMs: 100 })).drained, true);
  await bad.frontEnd.activate();
  for (const { client, close } of [good, bad]) {
    assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    await close();
  }
});

describe('a thread that dies', () => {
  /** A block driver whose engine does not exist: the first request ends its thread. */
  async function deadly(pool: QueueThreadPool): Promise<{ setup: BlkSetup; told: Promise<string> }> {
    const node: BlockNode = { ...(await nullNode()), engine: { kind: 'none' } as unknown as EngineSpec };
    const setup = await startBlk({ node, hosts: pool, device: { threads: [{ name: 'mortal' }] } });
    const told = new Promise<string>((resolve) => {
      setup.device.setListener({ onConfigChange() {}, onMemoryMiss() {}, onNeedsReset: resolve });
    });
    return { setup, told };
  }

  test('its devices say so, others go on, a stop ends, and the next device gets another one', async () => {
    const pool = makePool(1);
    const bystander = await startBlk({ node: await nullNode(), hosts: pool });
    const { setup, told } = await deadly(pool);
    void setup.client.read(0, 512);
    assert.match(await told, /^queue thread 'mortal': /);
    assert.equal((await bystander.client.read(0, 512)).status, BLK_S.OK);
    assert.equal((await setup.frontEnd.quiesce(1000)).drained, false);
    await assert.rejects(setup.frontEnd.activate(), { code: 'DEVICE_BROKEN', message: /'mortal'/ });
    await setup.frontEnd.close();

    const heir = await startBlk({
      node: await nullNode(),
      hosts: pool,
      device: { threads: [{ name: 'mortal' }] },
    });
    assert.equal((await heir.client.read(0, 512)).status, BLK_S.OK);
    assert.deepEqual(pool.threadNames.sort(), ['mortal', 'queues-0']);
    await heir.close();
    await bystander.close();
  });

  test('gives its descriptors back', async () => {
    const round = async (): Promise<void> => {
      const pool = makePool(1);
      const { setup, told } = await deadly(pool);
      void setup.client.read(0, 512);
      await told;
      await setup.frontEnd.close(100);
      await pool.close();
      await sleep(20);
    };
    // What is loaded with the first thread stays.
    await round();
    const before = await settledFdCount();
    await round();
    await round();
    // On a busy machine Node takes its time.
    await until(`${before} descriptors, as before`, () => openFdCount() <= before);
  });
});

/** Node closes what a thread of its own had open some time after the thread has ended. */
async function settledFdCount(): Promise<number> {
  let count = openFdCount();
  for (let n = 0; n < 40; n++) {
    await sleep(100);
    const now = openFdCount();
    if (now === count) {
      return now;
    }
    count = now;
  }
  return count;
}
