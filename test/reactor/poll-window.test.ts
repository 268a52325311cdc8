import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { PollWindow } from '../../src/reactor/poll-window.js';

function makeWindow(limitMs: number): PollWindow {
  const window = new PollWindow();
  window.limitMs = limitMs;
  return window;
}

describe('poll window', () => {
  it('is shut for good where nothing may be looked for', () => {
    const window = makeWindow(0);
    window.waited(0, 0.001);
    assert.equal(window.windowMs, 0);
  });

  it('closes while waits are long, and opens with one that a look would have ended', () => {
    const window = makeWindow(0.05);
    assert.equal(window.windowMs, 0.05);
    let now = 0;
    let seen = window.windowMs;
    for (let n = 0; n < 10; n++) {
      now += 100;
      window.waited(now - 100, now);
      assert.ok(window.windowMs <= seen / 2);
      seen = window.windowMs;
    }
    assert.equal(window.windowMs, 0, 'an idle thread does not look at all');
    window.waited(now, now + 0.04);
    assert.equal(window.windowMs, 0.05);
  });

  it('stays shut for a while after the processor was taken away, longer each time', () => {
    const window = makeWindow(0.05);
    assert.equal(window.wasPreempted(0, 0.01), false);
    let now = 0;
    let held = 0;
    for (let round = 0; round < 12; round++) {
      assert.equal(window.wasPreempted(now, now + 1), true);
      assert.equal(window.windowMs, 0);
      now += 1;
      let waited = 0;
      for (; window.windowMs === 0; waited += 0.5) {
        assert.ok(waited < 100, 'it opens again');
        now += 0.5;
        window.waited(now - 0.01, now);
      }
      assert.ok(waited >= held);
      held = waited;
    }
    assert.ok(held > 30, `${held} ms`);
  });

  it('is shut while the thread waits for a processor, and open when it has one', () => {
    const window = makeWindow(0.05);
    assert.ok(window.wantsDelay(1000));
    window.observeDelay(1000, 500);
    assert.equal(window.windowMs, 0.05, 'what was before is not known');
    assert.ok(!window.wantsDelay(1004));
    assert.ok(window.wantsDelay(1005));
    window.observeDelay(1005, 501);
    assert.equal(window.windowMs, 0.05, 'a fifth of the time is no pressure');
    window.observeDelay(1010, 503);
    assert.equal(window.windowMs, 0);
    window.waited(1059, 1059.01);
    assert.equal(window.windowMs, 0, 'for a while');
    window.waited(1061, 1061.01);
    assert.equal(window.windowMs, 0.05);
  });

  it('forgives with time', () => {
    const window = makeWindow(0.05);
    const holdAfter = (): number => {
      window.wasPreempted(0, 1000);
      let held = 0;
      for (; window.windowMs === 0; held += 0.5) {
        window.waited(1000 + held, 1000 + held + 0.01);
      }
      return held;
    };
    for (let n = 0; n < 7; n++) {
      holdAfter();
    }
    const long = holdAfter();
    for (let n = 0; n < 10_000; n++) {
      window.hit();
    }
    assert.ok(holdAfter() < long / 10);
  });
});
