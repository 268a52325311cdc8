/** The queue threads that all exports of the library share. They do not keep the process alive. */
import { QueueThreadPool } from '../worker/queue-thread-pool.js';

let pool: QueueThreadPool | undefined;
let users = 0;

/** Takes part in the process's queue threads; `releaseQueueThreads` when done. */
export function acquireQueueThreads(): QueueThreadPool {
  pool ??= new QueueThreadPool();
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
