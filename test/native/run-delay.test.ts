import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { RunDelay } from '../../src/native/run-delay.js';
import { openFdCount } from '../support/resources.js';

test("a thread's delay is what the kernel says", () => {
  const fds = openFdCount();
  const delay = RunDelay.open();
  assert.ok(delay !== undefined);
  const told = (): number =>
    Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ')[1]) / 1e6;
  const before = told();
  const read = delay.readMs();
  const after = told();
  assert.ok(before <= read && read <= after, `${before} <= ${read} <= ${after}`);
  delay.close();
  assert.equal(openFdCount(), fds);
});
