/** The queue threads that all exports of the library share. They do not keep the process alive. */
import type { Logger } from '../base/log.js';
import { QueueThreadPool } from '../worker/queue-thread-pool.js';

let pool: QueueThreadPool | undefined;
let users = 0;

/** Takes part in the process's queue threads; `releaseQueueThreads` when done. The first user's logger is theirs. */
export function acquireQueueThreads(logger: Logger): QueueThreadPool {
  pool ??= new QueueThreadPool({ logger });
  users++;
  return pool;
}

/** Ends the threads with their last user, so that a process that has closed its disks has nothing left. */
export async function releaseQueueThreads(): Promise<void> {
  users--;
  if (users === 0 && pool !== undefined) {
    const ending = pool;
    pool = undefined;
    await ending.close();
  }
}
