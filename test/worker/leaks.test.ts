/** Starting and stopping devices, many times: descriptors, threads and memory all come back. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { type BlkSetup, localNode, startBlk } from '../support/blk.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { openFdCount } from '../support/resources.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();
const path = makeSparseFile(join(directory, 'disk.img'), 1 << 20);
const pool = makeTestPool({ size: 2 });

interface Held {
  readonly fds: number;
  readonly threads: number;
  /** Address space in MiB: maps that nobody unmaps are seen here even where they join. */
  readonly mebibytes: number;
  readonly maps: number;
}

function held(): Held {
  return {
    fds: openFdCount(),
    threads: readdirSync('/proc/self/task').length,
    mebibytes: (Number(readFileSync('/proc/self/statm', 'latin1').split(' ')[0]) * 4096) / (1 << 20),
    maps: readFileSync('/proc/self/maps', 'latin1').split('\n').length,
  };
}

/** JavaScript's own memory comes and goes, dozens of maps at a time; what is leaked each time adds up. */
async function compare(before: Held, rounds: number): Promise<void> {
  // What was closed is gone with a later turn of the event loop, or of a busy machine.
  for (let wait = 0; wait < 100 && (held().fds > before.fds || held().threads > before.threads); wait++) {
    await sleep(20);
  }
  const now = held();
  assert.equal(now.fds, before.fds, 'descriptors');
  // Fewer, where a thread of the kernel's or of Node's ended in between.
  assert.ok(now.threads <= before.threads, `${now.threads - before.threads} threads more`);
  assert.ok(
    now.maps - before.maps < 64 + rounds / 2,
    `${now.maps - before.maps} maps more after ${rounds} rounds`,
  );
  assert.ok(
    now.mebibytes - before.mebibytes < 2 * rounds,
    `${now.mebibytes - before.mebibytes} MiB more after ${rounds} rounds`,
  );
}

async function use(setup: BlkSetup): Promise<void> {
  const queues = setup.frontEnd.queues.length;
  for (let queue = 0; queue < queues; queue++) {
    assert.equal((await setup.client.write(0, new Uint8Array(4096), queue)).status, BLK_S.OK);
  }
  await setup.close();
}

const small = { dataBytes: 1 << 20 };

async function rounds(count: number, round: () => Promise<void>): Promise<void> {
  for (let n = 0; n < count; n++) {
    await round();
  }
}

test('100 devices on queue threads, with O_DIRECT and without', async () => {
  let direct = false;
  const round = async (): Promise<void> => {
    direct = !direct;
    const node = await openBlockNode({ driver: 'file', nodeName: 'n', filename: path, cache: { direct } });
    await use(await startBlk({ node, hosts: pool, device: { queueCount: 3 }, frontEnd: small }));
  };
  await rounds(20, round);
  const before = held();
  await rounds(100, round);
  await compare(before, 100);
});

test('100 devices on the main thread', async () => {
  const disk = new MemoryDisk({ size: 65536 });
  const round = async (): Promise<void> => {
    await use(await startBlk({ node: localNode(disk), hosts: pool, frontEnd: small }));
  };
  await rounds(20, round);
  const before = held();
  await rounds(100, round);
  await compare(before, 100);
});

test('5 pools of threads', async () => {
  const round = async (): Promise<void> => {
    const own = new QueueThreadPool({ size: 2 });
    const node = await openBlockNode({ driver: 'memory', nodeName: 'n', size: 65536 });
    await use(await startBlk({ node, hosts: own, device: { queueCount: 2 }, frontEnd: small }));
    await own.close();
  };
  await rounds(2, round);
  const before = held();
  await rounds(5, round);
  await compare(before, 5 * 8);
});

test('what a stop gave up is released when it ends after all', async () => {
  const round = async (): Promise<void> => {
    const disk = new MemoryDisk({ size: 65536 });
    let open: () => void = () => {};
    disk.gate = new Promise((resolve) => {
      open = resolve;
    });
    const setup = await startBlk({
      node: localNode(disk),
      hosts: pool,
      device: { queueSize: 1024 },
      frontEnd: small,
    });
    void setup.client.read(0, 512);
    void setup.client.read(0, 512);
    while (disk.count('read') < 2) {
      await sleep(1);
    }
    assert.equal((await setup.frontEnd.quiesce(1)).drained, false);
    open();
    await sleep(1);
    await setup.close();
  };
  await rounds(5, round);
  const before = held();
  // The tables of a queue of 1024 elements take 16 MiB of address space.
  await rounds(20, round);
  await compare(before, 20);
});

test('devices whose block driver is gone leave nothing', async () => {
  const round = async (): Promise<void> => {
    const node = localNode(new MemoryDisk({ size: 65536 }));
    const setup = await startBlk({ node, hosts: pool, device: { queueSize: 1024 }, frontEnd: small });
    await setup.frontEnd.quiesce();
    await node.close();
    await assert.rejects(setup.frontEnd.activate(), /no block driver is registered/);
    await setup.frontEnd.close();
  };
  await rounds(5, round);
  const before = held();
  await rounds(20, round);
  await compare(before, 20);
});

test('devices that can not start leave nothing', async () => {
  const round = async (): Promise<void> => {
    const node = await openBlockNode({ driver: 'memory', nodeName: 'n', size: 65536 });
    const setup = await startBlk({ node, hosts: pool, device: { queueCount: 2 }, frontEnd: small });
    await setup.frontEnd.quiesce();
    const activation = setup.frontEnd.activation();
    const [good, bad] = activation.queues;
    const queues = [good, { ...bad, deviceAddress: 1 }];
    await assert.rejects(setup.device.activate({ ...activation, queues }), { code: 'PROTOCOL' });
    await setup.close();
  };
  await rounds(5, round);
  const before = held();
  await rounds(30, round);
  await compare(before, 30);
});
