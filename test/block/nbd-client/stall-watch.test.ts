import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { StallWatch } from '../../../src/block/drivers/nbd-client/stall-watch.js';

test('a message whose rest does not come has stalled; one that moves, or none, has not', async () => {
  const watch = new StallWatch(20);
  assert.equal(watch.hasStalled(true), false);
  await delay(40);
  assert.equal(watch.hasStalled(true), true);
  watch.onProgress();
  assert.equal(watch.hasStalled(true), false);
  await delay(40);
  assert.equal(watch.hasStalled(false), false);
  assert.equal(watch.hasStalled(true), false);
});
