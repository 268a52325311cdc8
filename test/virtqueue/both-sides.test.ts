import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { MemoryAccess } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { propertyRuns } from '../support/property.js';
import { QueuePair } from '../support/queue-pair.js';
import {
  type ChainPlan,
  QueueSimulation,
  simulationBytes,
  slotBytes,
  slotCount,
} from './queue-simulation.js';

const guest = new TestGuest(simulationBytes);
after(() => guest.close());

const size = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 0, max: 6 }).map((power) => 2 ** power) },
  { weight: 1, arbitrary: fc.constantFrom(1024, 32768) },
);
const index = fc.oneof(
  fc.constant(0),
  fc.integer({ min: 65520, max: 65535 }),
  fc.integer({ min: 0, max: 65535 }),
);
const bufferLengths = fc.array(fc.oneof(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 60 })), {
  maxLength: 5,
});
const chainPlan: fc.Arbitrary<ChainPlan> = fc
  .record({ readable: bufferLengths, writable: bufferLengths, gap: fc.integer({ min: 0, max: 3 }) })
  .filter((plan) => plan.readable.length + plan.writable.length > 0);

type Step = (simulation: QueueSimulation) => void;
const small = fc.integer({ min: 1, max: 9 });
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: chainPlan.map(
      (plan): Step =>
        (s) =>
          s.driverAdds(plan),
    ),
  },
  { weight: 3, arbitrary: fc.constant<Step>((s) => s.driverPublishes()) },
  {
    weight: 5,
    arbitrary: small.map(
      (batch): Step =>
        (s) =>
          s.deviceSteps(batch),
    ),
  },
  {
    weight: 4,
    arbitrary: fc.tuple(fc.nat(50), fc.nat(5)).map(
      ([choice, shortBy]): Step =>
        (s) =>
          s.deviceCompletes(choice, shortBy),
    ),
  },
  { weight: 3, arbitrary: fc.constant<Step>((s) => s.devicePublishes()) },
  {
    weight: 5,
    arbitrary: small.map(
      (batch): Step =>
        (s) =>
          s.driverSteps(batch),
    ),
  },
);

describe('both sides of a split virtqueue', () => {
  it('deliver every byte both ways and lose no notification, whatever the order of steps', () => {
    fc.assert(
      fc.property(
        fc.record({
          size,
          index,
          eventIdx: fc.boolean(),
          tableEntries: fc.constantFrom(0, 0, 2, 5, 10),
        }),
        fc.array(fc.integer({ min: 0, max: slotBytes * slotCount }), { maxLength: 8 }),
        fc.array(step, { maxLength: 250, size: 'max' }),
        (plan, cuts, steps) => {
          const simulation = new QueueSimulation(plan, guest, cuts);
          for (const take of steps) {
            take(simulation);
          }
          simulation.drain();
        },
      ),
      propertyRuns(250),
    );
  });

  for (const queueSize of [1, 2, 4, 256, 32768]) {
    for (const eventIdx of [false, true]) {
      it(`fill a queue of ${queueSize} to the last descriptor across the wrap, ${eventIdx ? 'with' : 'without'} EVENT_IDX`, () => {
        const payload = guest.region({
          start: 0,
          offset: 24 << 20,
          length: 4096,
          access: MemoryAccess.READ_WRITE,
        });
        const pair = new QueuePair({ size: queueSize, eventIdx, index: 65530 }, guest, [payload]);
        const buffers = new ChainBuffers(1);
        buffers.addWritable(16, 8);
        const heads = new Uint16Array(queueSize + 1);
        const batch = new UsedBatch(queueSize + 1);
        const chain = pair.device.createChain();
        for (let round = 0; round < 3; round++) {
          for (let n = 0; n < queueSize; n++) {
            assert.ok(pair.driver.addAvailable(buffers, n) >= 0);
          }
          assert.equal(pair.driver.addAvailable(buffers, 0), -Errno.ENOSPC);
          assert.equal(pair.device.popAvailable(heads), 0);
          assert.equal(pair.device.enableNotifications(), false);
          assert.equal(pair.driver.publishAvailable(), true);
          assert.equal(pair.driver.inFlight, queueSize);
          assert.equal(pair.device.popAvailable(heads), queueSize);
          for (let n = queueSize - 1; n >= 0; n--) {
            assert.equal(pair.device.readChain(heads[n], chain), 0);
            pair.device.addUsed(heads[n], n % 9);
          }
          assert.equal(pair.driver.popUsed(batch), 0);
          assert.equal(pair.driver.enableNotifications(), false);
          assert.equal(pair.device.publishUsed(), true);
          assert.equal(pair.driver.popUsed(batch), queueSize);
          for (let n = 0; n < queueSize; n++) {
            assert.equal(batch.token[n], queueSize - 1 - n);
            assert.equal(batch.writtenLength[n], batch.token[n] % 9);
          }
          assert.equal(pair.driver.freeDescriptors, queueSize);
        }
        assert.equal(pair.device.availIndex, (65530 + 3 * queueSize) & 0xffff);
      });
    }
  }
});
