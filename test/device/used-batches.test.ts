/** When a driver sees what a large batch of requests has finished. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { DeviceQueue } from '../../src/device/device-queue.js';
import { nextQueueId } from '../../src/device/queue-id.js';
import { SharedDeviceState } from '../../src/device/statistics.js';
import { MemoryAccess } from '../../src/memory/guest-memory.js';
import { closeFd, createEventFd } from '../../src/native/fd.js';
import { Reactor } from '../../src/reactor/reactor.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { QueuePair } from '../support/queue-pair.js';

const size = 128;
const payload = 0x10_0000;

describe('requests that end at once', () => {
  test('are shown while the rest of their batch is still taken', () => {
    const guest = new TestGuest(1 << 20);
    const kickFd = createEventFd();
    const reactor = new Reactor();
    try {
      const region = guest.region({
        start: payload,
        offset: 1 << 19,
        length: 4096,
        access: MemoryAccess.READ_WRITE,
      });
      const { driver, deviceConfig, deviceRegions } = new QueuePair({ size }, guest, [region]);
      const queue = new DeviceQueue(
        {
          id: nextQueueId(),
          queue: { index: 0, ...deviceConfig, kickFd, notifier: { kind: 'none' } },
          features: 1n << 32n,
          memory: deviceRegions,
          shared: new SharedDeviceState({ queueCount: 1 }).buffer,
          pollUs: 0,
          batch: size,
        },
        { reactor, onBroken: assert.fail, onMemoryMiss: assert.fail, onDrained: () => {} },
      );
      const used = new UsedBatch(size);
      const seen: number[] = [];
      queue.start({
        onChain: (head) => {
          seen.push(driver.popUsed(used));
          queue.complete(head, 0);
          return undefined;
        },
        cancel: () => {},
        close: () => {},
      });
      const buffers = new ChainBuffers(1);
      buffers.addReadable(payload, 16);
      for (let n = 0; n < size; n++) {
        driver.addAvailable(buffers, n);
      }
      driver.publishAvailable();
      assert.equal(queue.poll(), size);
      const early = seen.reduce((sum, count) => sum + count, 0);
      assert.ok(early >= size / 2 && early < size, `${early} of ${size} were seen before the batch ended`);
      queue.publish();
      assert.equal(early + driver.popUsed(used), size);
      queue.stop();
      queue.close();
    } finally {
      reactor.close();
      closeFd(kickFd);
      guest.close();
    }
  });
});
