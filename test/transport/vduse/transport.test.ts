/** The VDUSE transport against the messages of a driver, in Linux's order and in others. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BLK_S } from '../../../src/device/blk/blk-protocol.js';
import { localNode, memoryNode } from '../../support/blk.js';
import type { FakeRegion } from '../../support/fake-vduse-abi.js';
import { FakeVduse } from '../../support/fake-vduse-kernel.js';
import { makeTestPool } from '../../support/leftovers.js';
import { mappedBytes } from '../../support/mapped.js';
import { MemoryDisk } from '../../support/memory-disk.js';
import { openFdCount } from '../../support/resources.js';
import { VduseSetup } from '../../support/vduse-setup.js';
import { until, within } from '../../support/within.js';

const pool = makeTestPool({ size: 2 });
const size = 1 << 20;
/** Bytes of front-ends' memory that are mapped, beside a front-end's own map of it. */
const mapped = (): number => mappedBytes('memfd:front-end');
const bytesOf = (regions: readonly FakeRegion[]): number =>
  regions.reduce((sum, { start, last }) => sum + Number(last - start) + 1, 0);

async function withDevice(
  use: (setup: Awaited<ReturnType<typeof VduseSetup.create>>) => Promise<void>,
  options: Partial<Parameters<typeof VduseSetup.create>[0]> = {},
): Promise<void> {
  const setup = await VduseSetup.create({ node: await memoryNode(size), hosts: pool, ...options });
  try {
    await use(setup);
  } finally {
    await setup.close();
  }
}

describe('making a device', () => {
  for (const [version, groups] of [
    [0, 0],
    [1, 1],
  ] as const) {
    test(`API ${version}: what the driver is told, and in which order`, () =>
      withDevice(
        async ({ kernel, device }) => {
          assert.deepEqual(kernel.calls, [
            'openControl',
            'GET_API_VERSION',
            'SET_API_VERSION',
            'CREATE_DEV',
            'openDevice',
            'VQ_SETUP',
            'VQ_SETUP',
            'VQ_SETUP',
            'watch',
          ]);
          const { config, ...rest } = kernel.created ?? assert.fail();
          assert.deepEqual(rest, {
            name: 'disk0',
            vendorId: 0,
            deviceId: 2,
            features: device.deviceFeatures | (1n << 33n),
            queueCount: 3,
            queueAlignment: 4096,
            groups,
            addressSpaces: groups,
          });
          assert.deepEqual(config, device.config);
          assert.deepEqual(
            [...kernel.queueSizes],
            [
              [0, 16],
              [1, 16],
              [2, 16],
            ],
          );
          await kernel.bringUp();
          assert.ok(kernel.calls.includes(version === 0 ? 'IOTLB_GET_FD' : 'IOTLB_GET_FD2'));
        },
        { queueCount: 3, apiVersion: version },
      ));
  }

  test('an older kernel is spoken to in its version', async () => {
    const kernel = new FakeVduse();
    kernel.apiVersion = 0;
    await withDevice(async () => assert.equal(kernel.created?.groups, 0), { kernel });
  });
});

describe('the life of a driver', () => {
  test('goes up, is served, resets, and comes again on the same descriptor', () =>
    withDevice(async ({ kernel, client, frontEnd, transport }) => {
      const before = mapped();
      for (let round = 0; round < 3; round++) {
        assert.ok((await kernel.bringUp()).ok);
        assert.equal(transport.active, true);
        assert.equal(mapped() - before, bytesOf(kernel.regions));
        const data = new Uint8Array(4096).fill(round + 1);
        assert.equal((await client.write(8192, data)).status, BLK_S.OK);
        const read = await client.read(8192, 4096);
        assert.ok(Buffer.from(read.data).equals(data));
        assert.ok((await kernel.setStatus(0)).ok);
        assert.ok((await kernel.setStatus(1)).ok);
        assert.equal(transport.active, false);
        assert.equal(mapped(), before);
        assert.ok(!kernel.held.some((what) => what.startsWith('kick')));
        frontEnd.queues[0].reset();
      }
    }));

  test('the answer to DRIVER_OK comes when the queues run, with their kick eventfds', () =>
    withDevice(
      async ({ kernel }) => {
        const before = kernel.calls.length;
        await kernel.bringUp();
        const calls = kernel.calls.slice(before).filter((call) => call !== 'read');
        assert.deepEqual(calls.filter((call) => call === 'VQ_SETUP_KICKFD').length, 2);
        assert.equal(calls.at(-1), 'write');
        assert.ok(calls.lastIndexOf('VQ_SETUP_KICKFD') < calls.length - 1);
      },
      { queueCount: 2 },
    ));

  test('work that was there before the queue ran is found without a kick', () =>
    withDevice(async ({ kernel, client, frontEnd }) => {
      frontEnd.queues[0].kick = () => {};
      const reply = client.read(0, 512);
      await Promise.resolve();
      await kernel.bringUp();
      assert.equal((await within(3000, 'the reply', () => reply)).status, BLK_S.OK);
    }));

  test('features that were not offered are refused at FEATURES_OK', () =>
    withDevice(async ({ kernel, log, transport }) => {
      kernel.driverFeatures |= 1n << 40n;
      await kernel.setStatus(0);
      await kernel.setStatus(3);
      assert.equal((await kernel.setStatus(0xb)).ok, false);
      assert.equal((await kernel.setStatus(0xf)).ok, false);
      assert.equal(transport.active, false);
      assert.match(log[0].msg, /^'disk0': message set-status failed: .*not offered: 0x10000000000$/);
    }));

  test('rings outside the memory map are refused, and the next try may be better', () =>
    withDevice(async ({ kernel, frontEnd, client }) => {
      const before = mapped();
      kernel.regions = kernel.regionsOf(frontEnd).slice(1);
      assert.equal((await kernel.bringUp()).ok, false);
      assert.equal(mapped(), before);
      assert.deepEqual(
        kernel.held.filter((what) => what.startsWith('kick')),
        [],
      );
      kernel.regions = kernel.regionsOf(frontEnd);
      assert.ok((await kernel.bringUp()).ok);
      assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    }));
});

describe('messages', () => {
  test('GET_VQ_STATE tells how far a queue is, also after it was stopped', () =>
    withDevice(
      async ({ kernel, client }) => {
        await kernel.bringUp();
        for (let n = 0; n < 5; n++) {
          await client.read(0, 512, 1);
        }
        assert.deepEqual(await kernel.queueState(1), { ok: true, index: 1, availIndex: 5 });
        assert.deepEqual(await kernel.queueState(0), { ok: true, index: 0, availIndex: 0 });
        await kernel.setStatus(0x8f);
        assert.deepEqual(await kernel.queueState(1), { ok: true, index: 1, availIndex: 5 });
        await kernel.setStatus(0);
        assert.deepEqual(await kernel.queueState(1), { ok: true, index: 1, availIndex: 0 });
      },
      { queueCount: 2 },
    ));

  test('GET_VQ_STATE of a queue that there is not fails', () =>
    withDevice(async ({ kernel }) => {
      await kernel.bringUp();
      assert.equal((await kernel.queueState(1)).ok, false);
      assert.equal((await kernel.queueState(0xffff_ffff)).ok, false);
      assert.equal((await kernel.queueState(0)).ok, true);
    }));

  test('one that is not known fails, and the next is answered', () =>
    withDevice(async ({ kernel, log }) => {
      assert.equal((await kernel.send(77, () => {})).ok, false);
      assert.match(log[0].msg, /message type 77 is not known/);
      assert.ok((await kernel.setStatus(1)).ok);
    }));

  test('the one group of queues stays in the one address space', () =>
    withDevice(async ({ kernel }) => {
      const move = (group: number, space: number): Promise<{ ok: boolean }> =>
        kernel.send(3, (data) => {
          data.setUint32(24, group, true);
          data.setUint32(28, space, true);
        });
      assert.ok((await move(0, 0)).ok);
      assert.equal((await move(1, 0)).ok, false);
      assert.equal((await move(0, 1)).ok, false);
    }));

  test('several at once are answered one after the other, in their order', () =>
    withDevice(async ({ kernel }) => {
      const order: number[] = [];
      const statuses = [0, 1, 3, 0xb, 0xf, 0, 1];
      await Promise.all(
        statuses.map(async (status, n) => {
          assert.ok((await kernel.setStatus(status)).ok);
          order.push(n);
        }),
      );
      assert.deepEqual(order, [0, 1, 2, 3, 4, 5, 6]);
    }));

  test('an answer that nobody waits for any more is told of, and no more than that', () =>
    withDevice(async ({ kernel, log }) => {
      kernel.fault = (call, nth) => (call === 'write' && nth === 0 ? 2 : undefined);
      void kernel.setStatus(1);
      await until('the warning', () => log.length > 0);
      assert.match(log[0].msg, /too late/);
      assert.ok((await kernel.setStatus(3)).ok);
    }));
});

describe('memory that comes later', () => {
  test('is mapped when the first request misses it', () =>
    withDevice(
      async ({ kernel, client, frontEnd }) => {
        const before = mapped();
        assert.ok((await kernel.bringUp()).ok);
        assert.equal(mapped() - before, bytesOf(kernel.regions));
        kernel.regions = kernel.regionsOf(frontEnd);
        const replies = await Promise.all([
          client.read(0, 4096, 0),
          client.read(0, 4096, 1),
          client.flush(0),
        ]);
        assert.ok(replies.every(({ status }) => status === BLK_S.OK));
        assert.equal(mapped() - before, bytesOf(kernel.regions));
      },
      { memory: 'rings', queueCount: 2 },
    ));

  test('and never comes: the queue stops and says why, a reset gives the driver another chance', () =>
    withDevice(
      async ({ kernel, client, frontEnd, log }) => {
        await kernel.bringUp();
        void client.read(0, 512);
        await until('the error', () => log.length > 0);
        assert.match(log[0].msg, /^'disk0': the driver broke the device's rules: queue 0: .*not mapped/);
        assert.ok((await kernel.setStatus(0)).ok);
        frontEnd.queues[0].reset();
        kernel.regions = kernel.regionsOf(frontEnd);
        assert.ok((await kernel.bringUp()).ok);
        assert.equal((await client.read(0, 512)).status, BLK_S.OK);
        assert.equal(log.length, 1);
      },
      { memory: 'rings' },
    ));
});

describe('UPDATE_IOTLB', () => {
  const everything = (1n << 64n) - 1n;

  test('under load: every request is served, and every byte is right', () =>
    withDevice(
      async ({ kernel, client }) => {
        const before = mapped();
        await kernel.bringUp();
        let running = true;
        const served = [0, 0];
        const lane = async (queue: number): Promise<void> => {
          for (; running; served[queue]++) {
            const data = new Uint8Array(4096).fill(served[queue] + queue);
            const at = queue * 65536;
            assert.equal((await client.write(at, data, queue)).status, BLK_S.OK);
            assert.ok(Buffer.from((await client.read(at, 4096, queue)).data).equals(data));
          }
        };
        const lanes = [lane(0), lane(1)];
        for (let n = 0; n < 15; n++) {
          assert.ok((await kernel.updateIotlb(0n, everything)).ok);
          assert.equal(mapped() - before, bytesOf(kernel.regions));
          const seen = [...served];
          await until('both queues go on', () => served.every((count, queue) => count > seen[queue]));
        }
        running = false;
        await Promise.all(lanes);
      },
      { queueCount: 2 },
    ));

  test('swaps the map: what is gone is unmapped, what is new is used', () =>
    withDevice(async ({ kernel, client, frontEnd }) => {
      const all = kernel.regionsOf(frontEnd);
      const before = mapped();
      kernel.regions = all.slice(0, 2);
      await kernel.bringUp();
      for (const regions of [all, all.slice(0, 2), all]) {
        kernel.regions = regions;
        assert.ok((await kernel.updateIotlb(0n, everything)).ok);
        assert.equal(mapped() - before, bytesOf(regions));
      }
      assert.equal((await client.read(0, 512)).status, BLK_S.OK);
    }));

  test('before the driver is up it is nothing', () =>
    withDevice(async ({ kernel }) => {
      assert.ok((await kernel.updateIotlb(0n, everything)).ok);
      assert.ok(!kernel.calls.some((call) => call.startsWith('IOTLB')));
    }));
});

describe('requests that do not end', () => {
  const stuck = async (
    use: (setup: Awaited<ReturnType<typeof VduseSetup.create>>, open: () => void) => Promise<void>,
  ): Promise<void> => {
    const disk = new MemoryDisk({ size });
    let open: () => void = () => {};
    await withDevice(
      async (setup) => {
        await setup.kernel.bringUp();
        setup.kernel.timeoutMs = 1000;
        disk.gate = new Promise((resolve) => {
          open = resolve;
        });
        void setup.client.read(0, 512);
        await until('the read', () => disk.count('read') > 0);
        await use(setup, open);
      },
      { node: localNode(disk) },
    );
  };

  for (const [what, send] of [
    ['a reset', (kernel: FakeVduse) => kernel.setStatus(0)],
    ['another memory map', (kernel: FakeVduse) => kernel.updateIotlb(0n, 1n)],
  ] as const) {
    test(`${what} is refused in time, and the old memory stays mapped`, () =>
      stuck(async ({ kernel, transport, log }, open) => {
        const before = mapped();
        const started = performance.now();
        assert.equal((await send(kernel)).ok, false);
        const took = performance.now() - started;
        assert.ok(took > 500 && took < 990, `answered after ${took} ms of 1000`);
        assert.equal(mapped(), before);
        assert.equal(transport.active, false);
        assert.ok(log.some(({ msg }) => /did not end in time and were given up/.test(msg)));
        open();
        // The next driver gets memory of its own.
        assert.ok((await kernel.setStatus(0)).ok);
        assert.ok((await kernel.bringUp()).ok);
      }));

    test(`${what} waits for those that end in time`, () =>
      stuck(async ({ kernel }, open) => {
        const answer = send(kernel);
        await sleep(50);
        open();
        assert.ok((await answer).ok);
      }));
  }
});

describe('the end', () => {
  test('gives everything back', async () => {
    const round = async (): Promise<void> => {
      const kernel = new FakeVduse();
      await withDevice(
        async ({ client }) => {
          await kernel.bringUp();
          await client.read(0, 512);
        },
        { kernel },
      );
      assert.deepEqual(kernel.held, []);
    };
    await round();
    const before = [openFdCount(), mapped()];
    await round();
    assert.deepEqual([openFdCount(), mapped()], before);
  });

  test('is said once', () =>
    withDevice(async ({ transport, kernel }) => {
      await transport.close();
      await transport.close();
      assert.equal(kernel.calls.filter((call) => call === 'DESTROY_DEV').length, 1);
    }));

  test('of a device on the bus is refused with BUSY, and it is left behind', async () => {
    const setup = await VduseSetup.create({ node: await memoryNode(size), hosts: pool });
    setup.kernel.onBus = true;
    await assert.rejects(setup.close(), { code: 'BUSY', message: /still on the vDPA bus$/ });
    assert.deepEqual(setup.kernel.held, ['the device']);
  });

  test('of the kernel is told: messages that can not be read', () =>
    withDevice(async ({ kernel, transport }) => {
      await kernel.bringUp();
      kernel.fault = (call) => (call === 'read' ? 19 : undefined);
      void kernel.setStatus(0);
      await assert.rejects(transport.failed, {
        code: 'SYSTEM_CALL',
        message: /cannot read the messages of 'disk0'.*ENODEV/,
      });
      assert.ok(!kernel.held.includes('a watch'));
      kernel.fault = () => undefined;
    }));
});

test('a change of the configuration is set and the driver interrupted; none after the end', () =>
  withDevice(async ({ kernel, device, transport, frontEnd }) => {
    await kernel.bringUp();
    const before = kernel.calls.length;
    device.resized();
    assert.deepEqual(kernel.calls.slice(before), ['DEV_SET_CONFIG', 'DEV_INJECT_CONFIG_IRQ']);
    assert.equal(kernel.configIrqs, 1);
    await transport.close();
    device.resized();
    assert.equal(kernel.configIrqs, 1);
    assert.equal(frontEnd.queues.length, 1);
  }));
