/**
 * Store buffering, the one order that release and acquire do not give and that the rings rest on: one side publishes
 * an index and looks whether the other one sleeps, the other one says that it will sleep and looks at the index. If
 * both loads could pass both stores, both sides would sleep.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { mapAnonymous, unmap } from '../../src/native/memory.js';
import { type LitmusWork, litmusBytes, litmusViews, runLitmus } from './litmus-worker.js';

async function passedStores(atomic: boolean): Promise<{ rounds: number; passed: number }> {
  const address = mapAnonymous(litmusBytes);
  const work = { address, atomic };
  const worker = new Worker(new URL('./litmus-worker.js', import.meta.url), {
    workerData: { ...work, side: 1 } satisfies LitmusWork,
  });
  await once(worker, 'online');
  const done = once(worker, 'message');
  const rounds = runLitmus({ ...work, side: 0 });
  const [others] = (await done) as [number];
  assert.equal(others, rounds);
  const [ours, theirs] = litmusViews(address).results;
  let passed = 0;
  for (let round = 1; round <= rounds; round++) {
    passed += ours[round] === 0 && theirs[round] === 0 ? 1 : 0;
  }
  await worker.terminate();
  unmap(address, litmusBytes);
  return { rounds, passed };
}

test('an atomic load does not pass an atomic store, on memory that is mapped through FFI', async (t) => {
  const { rounds, passed } = await passedStores(true);
  t.diagnostic(`${rounds} rounds`);
  assert.ok(rounds > 0);
  assert.equal(passed, 0);
});

test('plain ones may pass: how often they do here', async (t) => {
  const { rounds, passed } = await passedStores(false);
  t.diagnostic(`${passed} of ${rounds} rounds`);
  assert.ok(rounds > 0);
});
