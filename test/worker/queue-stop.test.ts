/** Stopping queues whose back-end holds on to requests: in time, honestly, and with no trace afterwards. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BlockNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S, BLK_T } from '../../src/device/blk/blk-protocol.js';
import { closeFd, OpenFlag, openFile } from '../../src/native/fd.js';
import { localNode, memoryNode, startBlk } from '../support/blk.js';
import { encodeHeader } from '../support/blk-client.js';
import { untouched } from '../support/front-end-memory.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { needsIoUring } from '../support/needs-io-uring.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const pool = makeTestPool({ size: 2 });
const directory = makeTempDir();

function gate(): { promise: Promise<void>; open: () => void } {
  let open: () => void = () => {};
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

describe('a promise that does not settle', () => {
  test('the stop ends in its time and says so; what comes later touches nothing', async () => {
    const disk = new MemoryDisk({ size: 1 << 20 });
    disk.bytes.fill(0x33);
    const { frontEnd, client } = await startBlk({ node: localNode(disk), hosts: pool });
    const [queue] = frontEnd.queues;
    assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    const held = gate();
    disk.gate = held.promise;
    const places = [4096, 65536].map((length) =>
      queue.submit({ readable: [encodeHeader(BLK_T.IN, 0)], writable: [length, 1] }),
    );
    await until('the reads', () => disk.count('read') >= 3);
    const ring = queue.usedRing();
    const interrupts = queue.interrupts;
    const started = performance.now();
    const { drained, availIndices } = await frontEnd.quiesce(200);
    const took = performance.now() - started;
    assert.equal(drained, false);
    assert.ok(took >= 190 && took < 1000, `the stop took ${took} ms of 200`);
    assert.equal(availIndices.get(0), 3);
    held.open();
    await sleep(30);
    assert.deepEqual(queue.usedRing(), ring);
    assert.equal(queue.interrupts, interrupts);
    for (const place of places) {
      assert.ok(
        place.writableBytes().every((byte) => byte === untouched),
        'guest memory was written after the stop',
      );
    }
    await frontEnd.close();
  });

  test('a stop waits for one that does settle', async () => {
    const disk = new MemoryDisk({ size: 1 << 20 });
    const { frontEnd, client } = await startBlk({ node: localNode(disk), hosts: pool });
    const held = gate();
    disk.gate = held.promise;
    const read = client.read(0, 512);
    await until('the reads', () => disk.count('read') >= 1);
    const stop = frontEnd.quiesce(5000);
    await sleep(20);
    held.open();
    const started = performance.now();
    assert.equal((await stop).drained, true);
    assert.ok(performance.now() - started < 1000);
    assert.equal((await read).status, BLK_S.OK);
    await frontEnd.close();
  });

  test('another queue of the main thread goes on meanwhile', async () => {
    const stuck = new MemoryDisk({ size: 1 << 20 });
    const free = new MemoryDisk({ size: 1 << 20 });
    const first = await startBlk({ node: localNode(stuck), hosts: pool });
    const second = await startBlk({ node: localNode(free), hosts: pool });
    stuck.gate = new Promise(() => {});
    void first.client.read(0, 512);
    await until('the read', () => stuck.count('read') >= 1);
    const stop = first.frontEnd.quiesce(100);
    let served = 0;
    let stopping = true;
    const whenStopped = stop.finally(() => {
      stopping = false;
    });
    while (stopping) {
      assert.equal((await second.client.read(0, 512)).status, BLK_S.OK);
      served++;
    }
    assert.equal((await whenStopped).drained, false);
    assert.ok(served > 1, `${served} requests of the other queue were served`);
    assert.equal((await second.client.read(0, 512)).status, BLK_S.OK);
    await first.frontEnd.close();
    await second.close();
  });
});

describe('on a queue thread', () => {
  test('a drain that the thread hears of too late is none: the queue goes on', async () => {
    const { client, device, close } = await startBlk({ node: await memoryNode(1 << 20), hosts: pool });
    let changes = 0;
    const change = async (): Promise<void> => void changes++;
    for (let n = 0; n < 5; n++) {
      await assert.rejects(device.drained(change, -100), { code: 'TIMEOUT' });
      assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    }
    await device.drained(change, 5000);
    assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    assert.equal(changes, 1);
    await close();
  });

  /** A file that never answers a read: both ends of a FIFO. */
  async function stuckNode(): Promise<{ node: BlockNode; close: () => void }> {
    const path = join(directory, `fifo-${Math.random()}`);
    execFileSync('mkfifo', [path]);
    const fd = openFile(path, OpenFlag.O_RDWR);
    const memory = await memoryNode(1 << 20);
    await memory.close();
    return { node: { ...memory, size: 1 << 20, engine: { ...spec, fd } }, close: () => closeFd(fd) };
  }
  const spec = {
    kind: 'file',
    memoryAlignment: 1,
    noFlush: false,
    ignoreDiscard: false,
    forceAsync: false,
  } as const;

  test('what can be cancelled is, at half of the time, and the stop is drained', needsIoUring, async () => {
    const { node, close } = await stuckNode();
    const { client, frontEnd, device } = await startBlk({ node, hosts: pool });
    const reads = [client.read(0, 512), client.read(512, 512), client.read(1024, 1024)];
    await until('the requests', () => device.statistics.inFlight === 3);
    const started = performance.now();
    const { drained, availIndices } = await frontEnd.quiesce(1000);
    const took = performance.now() - started;
    assert.equal(drained, true);
    assert.equal(availIndices.get(0), 3);
    assert.ok(took >= 490 && took < 990, `the stop took ${took} ms of 1000`);
    for (const read of reads) {
      assert.equal((await read).status, BLK_S.IOERR);
    }
    await frontEnd.close();
    close();
  });

  test('a stop of an idle queue is over at once, whatever its time', async () => {
    const node = await openBlockNode({ driver: 'null-co', nodeName: 'n' });
    const { client, frontEnd, close } = await startBlk({ node, hosts: pool, device: { queueCount: 2 } });
    await client.read(0, 512);
    const started = performance.now();
    assert.equal((await frontEnd.quiesce(30_000)).drained, true);
    assert.ok(performance.now() - started < 1000);
    await close();
  });

  test('a stop without time gives up at once', needsIoUring, async () => {
    const { node, close } = await stuckNode();
    const { client, frontEnd, device } = await startBlk({ node, hosts: pool });
    void client.read(0, 512);
    await until('the request', () => device.statistics.inFlight === 1);
    const started = performance.now();
    assert.equal((await frontEnd.quiesce(0)).drained, false);
    assert.ok(performance.now() - started < 500);
    await frontEnd.close();
    close();
  });
});
