import type { QuiesceOptions } from './virtio-device.js';

/** Takes the queues that are to stop out of those that run, by index. */
export function takeQueues<Queue>(running: Map<number, Queue>, options: QuiesceOptions): [number, Queue][] {
  const taken = [...running].filter(([index]) => options.queues?.includes(index) ?? true);
  for (const [index] of taken) {
    running.delete(index);
  }
  return taken;
}
