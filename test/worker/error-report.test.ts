/** Every failed request is told of: the first at once, the others together, none lost at the end. */
import assert from 'node:assert/strict';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import type { BlockNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { type BlkSetup, localNode, startBlk } from '../support/blk.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();
const pool = makeTestPool({ size: 1 });

/** A node of which every read fails. */
async function failingNode(where: 'thread' | 'main'): Promise<BlockNode> {
  if (where === 'main') {
    const disk = new MemoryDisk({ size: 1 << 20 });
    disk.failure = new Error('broken');
    return localNode(disk);
  }
  const filename = join(directory, `cut-${Math.random()}`);
  writeFileSync(filename, new Uint8Array(1 << 20));
  const node = await openBlockNode({ driver: 'file', nodeName: 'n', filename });
  truncateSync(filename, 0);
  return node;
}

async function start(where: 'thread' | 'main'): Promise<{ setup: BlkSetup; counts: number[] }> {
  const counts: number[] = [];
  const logger = pino({}, { write: (line: string) => void counts.push(JSON.parse(line).count) });
  const setup = await startBlk({ node: await failingNode(where), hosts: pool, device: { logger } });
  return { setup, counts };
}

async function fail(setup: BlkSetup, count: number): Promise<void> {
  const reads = Array.from({ length: count }, () => setup.client.read(0, 512));
  for (const { status } of await Promise.all(reads)) {
    assert.equal(status, BLK_S.IOERR);
  }
}

const sum = (counts: readonly number[]): number => counts.reduce((total, count) => total + count, 0);

for (const where of ['thread', 'main'] as const) {
  test(`what was held back is told when the queue stops (${where})`, async () => {
    const { setup, counts } = await start(where);
    await fail(setup, 20);
    await setup.close();
    assert.deepEqual(counts, [1, 19]);
  });
}

test('what was held back is told after a second or two, also when nothing fails any more', async () => {
  const setups = [await start('thread'), await start('main')];
  for (const { setup } of setups) {
    await fail(setup, 7);
  }
  for (let wait = 0; wait < 300 && setups.some(({ counts }) => sum(counts) < 7); wait++) {
    await sleep(10);
  }
  for (const { setup, counts } of setups) {
    assert.deepEqual(counts, [1, 6]);
    await setup.close();
  }
});
