/** How a large batch of requests is taken and shown. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type ChainHandler, DeviceQueue } from '../../src/device/device-queue.js';
import { nextQueueId } from '../../src/device/queue-id.js';
import { SharedDeviceState } from '../../src/device/statistics.js';
import { MemoryAccess } from '../../src/memory/guest-memory.js';
import { closeFd, createEventFd } from '../../src/native/fd.js';
import { Reactor } from '../../src/reactor/reactor.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { type DriverVirtqueue, UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { QueuePair } from '../support/queue-pair.js';

const size = 128;
const payload = 0x10_0000;
const payloadBytes = 1 << 18;

interface Setup {
  readonly driver: DriverVirtqueue;
  readonly queue: DeviceQueue;
  /** Makes so many requests available, each with so many bytes to write. */
  offer(count: number, bytes: number): void;
}

/** A queue that is polled by hand. */
function withQueue(
  use: (setup: Setup) => void,
  makeHandler: (setup: Setup) => Pick<ChainHandler, 'onChain'>,
): void {
  const guest = new TestGuest(1 << 20);
  const kickFd = createEventFd();
  const reactor = new Reactor();
  try {
    const place = { start: payload, offset: 1 << 19, length: payloadBytes };
    const region = guest.region({ ...place, access: MemoryAccess.READ_WRITE });
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
    const offer = (count: number, bytes: number): void => {
      const buffers = new ChainBuffers(1);
      buffers.addWritable(payload, bytes);
      for (let n = 0; n < count; n++) {
        driver.addAvailable(buffers, n);
      }
      driver.publishAvailable();
    };
    const setup = { driver, queue, offer };
    queue.start({ ...makeHandler(setup), cancel: () => {}, close: () => {} });
    use(setup);
    queue.stop();
    queue.close();
  } finally {
    reactor.close();
    closeFd(kickFd);
    guest.close();
  }
}

describe('a large batch', () => {
  test('that ends at once is shown while its rest is still taken', () => {
    const used = new UsedBatch(size);
    let early = 0;
    withQueue(
      ({ queue, driver, offer }) => {
        offer(size, 512);
        assert.equal(queue.poll(), size);
        assert.ok(early >= size / 2 && early < size, `${early} of ${size} were seen before the batch ended`);
        queue.publish();
        assert.equal(early + driver.popUsed(used), size);
      },
      (setup) => ({
        onChain: (head) => {
          early += setup.driver.popUsed(used);
          setup.queue.complete(head, 0);
          return undefined;
        },
      }),
    );
  });

  test('of large requests is taken in parts, and what is left counts as not taken', () => {
    const heads: number[] = [];
    withQueue(
      ({ queue, offer }) => {
        offer(8, payloadBytes / 2);
        for (const taken of [2, 4, 6, 8]) {
          assert.equal(queue.poll(), 2);
          assert.deepEqual([heads.length, queue.availIndex], [taken, taken]);
          // What was popped already does not wait for a kick.
          assert.equal(queue.prepareToSleep(), taken < 8);
        }
        assert.equal(queue.poll(), 0);
        assert.equal(new Set(heads).size, 8);
        for (const head of heads) {
          queue.complete(head, 0);
        }
      },
      () => ({
        onChain: (head) => {
          heads.push(head);
          return undefined;
        },
      }),
    );
  });
});
