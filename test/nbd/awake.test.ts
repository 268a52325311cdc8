/** When the event loop stays awake for a client, and when it does not. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { StayAwake } from '../../src/nbd/awake.js';

function isSpinning(): boolean {
  return process.getActiveResourcesInfo().includes('Immediate');
}

/** Requests that come at once after a reply. */
function exchange(awake: StayAwake, times: number): void {
  for (let n = 0; n < times; n++) {
    awake.onReceived();
    awake.onReplied();
  }
}

describe('staying awake for the next request', () => {
  test('a client that answers in time is waited for, and not for ever', async () => {
    const awake = new StayAwake(50_000);
    exchange(awake, 1);
    assert.equal(isSpinning(), false, 'nothing is known of the client yet');
    exchange(awake, 3);
    assert.equal(isSpinning(), true);
    for (let n = 0; n < 200 && isSpinning(); n++) {
      await delay(10);
    }
    assert.equal(isSpinning(), false);
  });

  test('clients that are slow let the event loop sleep, after a few of their requests', async () => {
    const awake = new StayAwake(1);
    for (let n = 0; n < 8; n++) {
      await delay(2);
      exchange(awake, 1);
    }
    assert.equal(isSpinning(), false);
  });

  test('0 microseconds: never', () => {
    const awake = new StayAwake(0);
    exchange(awake, 10);
    assert.equal(isSpinning(), false);
  });
});
