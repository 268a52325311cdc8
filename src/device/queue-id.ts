let last = 0;

/** A number for a queue, unique in the process: hosts serve the queues of several devices. */
export function nextQueueId(): number {
  last++;
  return last;
}
