/** The filter that fails on purpose, and a mirror whose target does. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { FaultRuleOptions } from '../../src/block/node.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { Errno } from '../../src/native/errno.js';
import type { BlkFrontend } from '../../src/software-vduse/blk-frontend.js';
import { DaemonDisks } from '../support/daemon-disk.js';

const MiB = 1 << 20;
let disks: DaemonDisks;
let daemon: StorageDaemon;

beforeEach(() => {
  disks = new DaemonDisks();
  daemon = disks.daemon;
});

afterEach(() => disks.close());

async function addFaulty(nodeName: string, rules: readonly FaultRuleOptions[], seed = 1): Promise<void> {
  await daemon.addNode({
    driver: 'fault',
    nodeName,
    seed,
    rules,
    file: { driver: 'memory', size: MiB, nodeName: `${nodeName}-memory` },
  });
}

/** Which of so many writes fail. */
async function failures(disk: BlkFrontend, count: number): Promise<number[]> {
  const failed: number[] = [];
  for (let n = 0; n < count; n++) {
    await disk.write(n * 512, new Uint8Array(512).fill(n)).catch(() => failed.push(n));
  }
  return failed;
}

describe('the filter fault', () => {
  test('strikes what its rules name, as often as they say', async () => {
    await addFaulty('a', [{ on: 'write', effect: 'error', errno: Errno.ENOSPC, after: 2, times: 3 }]);
    const disk = await disks.export('a');
    assert.deepEqual(await failures(disk, 10), [2, 3, 4]);
    const back = new Uint8Array(512 * 10);
    await disk.read(0, back);
    assert.deepEqual(
      Array.from({ length: 10 }, (_, n) => back[n * 512]),
      [0, 1, 0, 0, 0, 5, 6, 7, 8, 9],
    );
  });

  test('strikes the same requests for the same seed', async () => {
    const rules = [{ on: 'write', effect: 'error', oneIn: 4 }] as const;
    const results: number[][] = [];
    for (const [name, seed] of [
      ['a', 1],
      ['b', 1],
      ['c', 2],
    ] as const) {
      await addFaulty(name, rules, seed);
      results.push(await failures(await disks.export(name), 64));
    }
    assert.deepEqual(results[0], results[1]);
    assert.notDeepEqual(results[0], results[2]);
    assert.ok(results[0].length > 4 && results[0].length < 40, `${results[0].length} of 64`);
  });

  test('delays, is away for a while, and fails what it did', async () => {
    await addFaulty('late', [{ on: 'write', effect: 'late-error', times: 1 }]);
    const late = await disks.export('late');
    assert.deepEqual(await failures(late, 2), [0]);
    await addFaulty('slow', [
      { on: 'write', effect: 'delay', delayMs: 50, times: 1 },
      { on: 'flush', effect: 'disconnect', delayMs: 80, times: 1 },
    ]);
    const slow = await disks.export('slow');
    const start = performance.now();
    await slow.write(0, new Uint8Array(512));
    const written = performance.now();
    assert.ok(written - start >= 45, `${written - start} ms`);
    await Promise.all([slow.flush(), delay(5).then(() => slow.read(0, new Uint8Array(512)))]);
    assert.ok(performance.now() - written >= 75, `${performance.now() - written} ms`);
  });
});

test('a mirror whose target fails ends, and the disk stays where it was', async () => {
  await daemon.addNode({ driver: 'memory', nodeName: 'source', size: MiB });
  const disk = await disks.export('source');
  const mirror = { device: 'source', target: 'target', sync: 'full', autoDismiss: false } as const;
  await disk.write(0, new Uint8Array(4096).fill(1));
  await addFaulty('target', [{ on: 'write', effect: 'error', errno: Errno.ENOSPC }]);
  const job = await daemon.startMirror({ ...mirror, jobId: 'full' });
  await job.ended;
  assert.match(job.error ?? '', /ENOSPC/);
  assert.equal(job.status, 'concluded');
  await daemon.deleteNode('target');
  // At the very end: the last flush.
  await addFaulty('target', [{ on: 'flush', effect: 'error' }]);
  const last = await daemon.startMirror({ ...mirror, jobId: 'last' });
  while (!last.isReady) {
    await delay(2);
  }
  last.complete();
  await last.ended;
  assert.match(last.error ?? '', /EIO/);
  assert.equal(daemon.exports[0].node.nodeName, 'source');
  await disk.write(0, new Uint8Array(4096).fill(2));
  await daemon.deleteNode('target');
  // Front-ends do not see what a target of write-blocking does.
  await addFaulty('target', [{ on: 'write', effect: 'error', after: 1 }]);
  const blocking = await daemon.startMirror({ ...mirror, jobId: 'both', copyMode: 'write-blocking' });
  for (let n = 0; n < 20; n++) {
    await disk.write(n * 512, new Uint8Array(512).fill(3));
  }
  await blocking.ended;
  assert.notEqual(blocking.error, undefined);
  const back = new Uint8Array(512);
  await disk.read(19 * 512, back);
  assert.deepEqual(back, new Uint8Array(512).fill(3));
});
