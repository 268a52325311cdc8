/**
 * What a test that failed has left running, which would keep its process alive: closed when the file's tests are
 * over, so that a failure is an end and not a hang.
 */

import { after } from 'node:test';
import { QueueThreadPool, type QueueThreadPoolOptions } from '../../src/worker/queue-thread-pool.js';

const open = new Map<object, () => Promise<unknown>>();

/** Remembers how to close something that is open now. */
export function willClose(owner: object, close: () => Promise<unknown>): void {
  open.set(owner, close);
}

export function isClosed(owner: object): void {
  open.delete(owner);
}

async function closeLeftovers(): Promise<void> {
  for (const close of [...open.values()].reverse()) {
    await close().catch(() => {});
  }
}

/** Queue threads for the tests of a file. */
export function makeTestPool(options: QueueThreadPoolOptions): QueueThreadPool {
  const pool = new QueueThreadPool(options);
  after(async () => {
    await closeLeftovers();
    await pool.close();
  });
  return pool;
}
