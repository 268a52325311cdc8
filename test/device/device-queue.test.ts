/** A queue whose memory map grows while it runs, whose driver breaks rules, and whose stop comes at odd moments. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BLK_S, BLK_T } from '../../src/device/blk/blk-protocol.js';
import { MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { type BlkSetup, localNode, memoryNode, startBlk } from '../support/blk.js';
import { encodeHeader } from '../support/blk-client.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { until } from '../support/within.js';

const pool = makeTestPool({ size: 2 });
const size = 1 << 20;

/** What a transport is told, with the memory that it would answer with. */
class Transport {
  readonly #setup: BlkSetup;
  misses = 0;
  readonly resets: string[] = [];
  /** The answer to a miss; undefined keeps it waiting. */
  answer: (() => readonly MemoryRegion[]) | undefined;

  constructor(setup: BlkSetup) {
    this.#setup = setup;
    setup.device.setListener({
      onConfigChange() {},
      onNeedsReset: (reason) => this.resets.push(reason),
      onMemoryMiss: () => {
        this.misses++;
        if (this.answer !== undefined) {
          setup.device.updateMemory(this.answer());
        }
      },
    });
  }

  get all(): readonly MemoryRegion[] {
    return this.#setup.frontEnd.memory.regions;
  }

  /** The rings alone: what Linux has mapped when the queues start. */
  get rings(): readonly MemoryRegion[] {
    return this.all.slice(0, 1);
  }

  /** Goes on with less memory than the driver uses. */
  async restart(memory: readonly MemoryRegion[]): Promise<void> {
    await this.#setup.frontEnd.quiesce();
    await this.#setup.device.activate({ ...this.#setup.frontEnd.activation(), memory });
  }

  until(condition: () => boolean): Promise<void> {
    return until('what the transport waits for', condition);
  }
}

for (const where of ['a queue thread', 'the main thread']) {
  const start = async (queueCount = 1): Promise<{ setup: BlkSetup; transport: Transport }> => {
    const node = where === 'a queue thread' ? await memoryNode(size) : localNode(new MemoryDisk({ size }));
    const setup = await startBlk({ node, hosts: pool, device: { queueCount } });
    return { setup, transport: new Transport(setup) };
  };

  describe(`memory that is not mapped yet, on ${where}`, () => {
    test('is asked for once, and the request goes on when it is', async () => {
      const { setup, transport } = await start();
      await transport.restart(transport.rings);
      transport.answer = () => transport.all;
      const replies = await Promise.all([
        setup.client.read(0, 512),
        setup.client.flush(),
        setup.client.read(0, 512),
      ]);
      assert.deepEqual(
        replies.map(({ status }) => status),
        [BLK_S.OK, BLK_S.OK, BLK_S.OK],
      );
      assert.deepEqual([transport.misses, transport.resets], [1, []]);
      await setup.close();
    });

    test('that does not exist breaks the queue: told once, after one question', async () => {
      const { setup, transport } = await start();
      await transport.restart(transport.rings);
      transport.answer = () => transport.rings;
      void setup.client.read(0, 512);
      await transport.until(() => transport.resets.length > 0);
      await sleep(10);
      assert.deepEqual(transport.resets, ['queue 0: a descriptor names memory that is not mapped for it']);
      assert.equal(transport.misses, 1);
      await setup.close();
    });

    test('that may not be used in that way breaks it too', async () => {
      const { setup, transport } = await start();
      const readable = transport.all.map((region, n) =>
        n === 0 ? region : { ...region, access: MemoryAccess.READ },
      );
      await transport.restart(readable);
      transport.answer = () => readable;
      void setup.client.read(0, 512);
      await transport.until(() => transport.resets.length > 0);
      assert.equal(transport.misses, 1);
      await setup.close();
    });

    test('each part of it is asked for', async () => {
      const { setup, transport } = await start();
      await transport.restart(transport.rings);
      // A request in the second half, which is mapped after the first.
      const { memory } = setup.frontEnd;
      const half = transport.all[2].start;
      while (memory.allocate(65536) + 65536 < half);
      transport.answer = () => (transport.misses === 1 ? transport.all.slice(0, 2) : transport.all);
      const held = memory.allocate(8192);
      const read = setup.frontEnd.queues[0].exchange({
        readable: [encodeHeader(BLK_T.IN, 0)],
        writable: [4096, 1],
      });
      memory.release(held, 8192);
      const outcome = await Promise.race([read, transport.until(() => transport.resets.length > 0)]);
      assert.ok(outcome === undefined || outcome.data.at(-1) === BLK_S.OK);
      await setup.close();
    });

    test('a stop while it is waited for hands on the requests as not taken', async () => {
      const { setup, transport } = await start();
      assert.equal((await setup.client.flush()).status, BLK_S.OK);
      await transport.restart(transport.rings);
      const replies = [setup.client.read(0, 512), setup.client.read(512, 512), setup.client.flush()];
      await transport.until(() => transport.misses > 0);
      const { drained, availIndices } = await setup.frontEnd.quiesce();
      assert.deepEqual([drained, availIndices.get(0)], [true, 1]);
      await setup.frontEnd.activate();
      for (const reply of replies) {
        assert.equal((await reply).status, BLK_S.OK);
      }
      await setup.close();
    });
  });

  test(`the available index of a queue that runs counts what it has taken, on ${where}`, async () => {
    const { setup } = await start();
    assert.equal(setup.device.availIndex(0), 0);
    await Promise.all(Array.from({ length: 5 }, () => setup.client.read(0, 512)));
    assert.equal(setup.device.availIndex(0), 5);
    await setup.close();
  });
}

test('memory that was looked for before a queue missed it is no answer to the queue', async () => {
  const setup = await startBlk({ node: await memoryNode(size), hosts: pool });
  const transport = new Transport(setup);
  await transport.restart(transport.rings);
  transport.answer = () => transport.all;
  const reply = setup.client.read(0, 512);
  await Promise.resolve();
  // The thread meets the request now; what it tells waits for this thread's event loop.
  for (const end = performance.now() + 30; performance.now() < end; );
  assert.equal(transport.misses, 0);
  setup.device.updateMemory(transport.rings);
  assert.equal((await reply).status, BLK_S.OK);
  assert.deepEqual([transport.misses, transport.resets], [1, []]);
  await setup.close();
});

test('the available index counts requests that have not ended, and the statistics show them', async () => {
  const disk = new MemoryDisk({ size });
  const setup = await startBlk({ node: localNode(disk), hosts: pool });
  let open: () => void = () => {};
  disk.gate = new Promise((resolve) => {
    open = resolve;
  });
  const replies = [setup.client.read(0, 512), setup.client.read(0, 512)];
  await until('both reads', () => disk.count('read') === 2);
  await until('their count', () => setup.device.statistics.inFlight === 2);
  assert.equal(setup.device.availIndex(0), 2);
  open();
  await Promise.all(replies);
  assert.equal(setup.device.statistics.inFlight, 0);
  await setup.close();
});
