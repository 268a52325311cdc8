/** Every call of the transport fails once: whatever fails, nothing stays open and nothing stays mapped. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VduseError } from '../../../src/base/errors.js';
import { Errno } from '../../../src/native/errno.js';
import { VduseTransport } from '../../../src/transport/vduse/vduse-transport.js';
import { localNode } from '../../support/blk.js';
import { FakeVduse } from '../../support/fake-vduse-kernel.js';
import { makeTestPool } from '../../support/leftovers.js';
import { mappedBytes } from '../../support/mapped.js';
import { MemoryDisk } from '../../support/memory-disk.js';
import { openFdCount } from '../../support/resources.js';
import { VduseSetup } from '../../support/vduse-setup.js';
import { until, within } from '../../support/within.js';

const pool = makeTestPool({ size: 1 });

/** What the process holds, when what closes with the next turns of the event loop has closed. */
async function holding(): Promise<{ fds: number; mapped: number }> {
  for (let turn = 0; turn < 3; turn++) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  return { fds: openFdCount(), mapped: mappedBytes('memfd:front-end') };
}

interface Fault {
  readonly call: string;
  readonly nth: number;
  readonly errno: number;
}

/** What the driver still has of us, but for what it could not be relieved of because that very call failed. */
function leftIn(kernel: FakeVduse, fault: Fault | undefined): string[] {
  return kernel.held.filter(
    (one) =>
      !(one === 'the device' && fault?.call === 'DESTROY_DEV') &&
      !(one.startsWith('kick') && fault?.call === 'VQ_SETUP_KICKFD'),
  );
}

/** From nothing to a driver that was served, and back. Returns what the first failure threw, if any did. */
async function life(setup: VduseSetup): Promise<unknown> {
  const { kernel, client, frontEnd } = setup;
  let thrown: unknown;
  try {
    const transport = await setup.createTransport();
    void transport.failed.catch((error: unknown) => {
      thrown ??= error;
    });
    const up = await kernel.bringUp().catch(() => ({ ok: false }));
    if (up.ok) {
      await client.read(0, 512, 0);
      await kernel.updateIotlb(0n, 1n);
      kernel.regions = kernel.regionsOf(frontEnd);
      setup.device.resized();
      await kernel.setStatus(0);
    }
    await transport.close();
  } catch (error) {
    thrown ??= error;
    await setup.transport?.close().catch(() => {});
  }
  return thrown;
}

async function makeSetup(kernel: FakeVduse): Promise<VduseSetup> {
  const disk = new MemoryDisk({ size: 65536 });
  return VduseSetup.make({ node: localNode(disk), hosts: pool, queueCount: 2, kernel });
}

async function aWhileAfter(happened: () => boolean): Promise<void> {
  await until('the fault', happened);
  await sleep(60);
}

/** Runs the life with a fault; what the process holds is the same before and after. */
async function lifeWith(fault: Fault): Promise<void> {
  const what = `${fault.call} #${fault.nth} with errno ${fault.errno}`;
  const kernel = new FakeVduse();
  kernel.timeoutMs = 100;
  let injected = false;
  kernel.fault = (call, nth) => {
    injected ||= call === fault.call && nth === fault.nth;
    return call === fault.call && nth === fault.nth ? fault.errno : undefined;
  };
  const before = await holding();
  const setup = await makeSetup(kernel);
  // A message whose reading or answer fails is never answered: the driver gives up.
  const silent = ['read', 'write'].includes(fault.call) && fault.errno !== Errno.EAGAIN;
  let over = false;
  const lived = (): Promise<unknown> => life(setup).finally(() => (over = true));
  const thrown = await (silent
    ? Promise.race([lived(), aWhileAfter(() => injected || over)])
    : within(4000, `the end after ${what}`, lived));
  await setup.transport?.close().catch(() => {});
  await setup.release();
  // How often some calls are made depends on what each finds: reads of messages, or the queue's first looks.
  assert.ok(injected || fault.nth > 0 || fault.call === 'read', `${what} was not called`);
  assert.ok(thrown === undefined || thrown instanceof Error, what);
  if (thrown !== undefined) {
    assert.ok(thrown instanceof VduseError, `${what} threw ${thrown}`);
  }
  assert.deepEqual(leftIn(kernel, fault), [], what);
  assert.deepEqual(await holding(), before, what);
}

test('making, serving and closing a device', { timeout: 60_000 }, async () => {
  const kernel = new FakeVduse();
  const setup = await makeSetup(kernel);
  assert.equal(await life(setup), undefined);
  await setup.release();
  const counts = new Map<string, number>();
  for (const call of kernel.calls) {
    counts.set(call, (counts.get(call) ?? 0) + 1);
  }
  counts.delete('close');
  assert.ok(counts.size >= 15, `${[...counts.keys()]} are all the calls`);
  for (const [call, count] of counts) {
    // The reads that find nothing are many and alike.
    for (let nth = 0; nth < Math.min(count, 8); nth++) {
      await lifeWith({ call, nth, errno: call === 'openDevice' ? Errno.EBUSY : Errno.EIO });
    }
    await lifeWith({ call, nth: 0, errno: Errno.EPERM });
    await lifeWith({ call, nth: count - 1, errno: Errno.ENOMEM });
  }
});

test('a device that can not even be destroyed: the first error is told, not the second', async () => {
  for (const call of ['openDevice', 'VQ_SETUP', 'watch']) {
    const kernel = new FakeVduse();
    kernel.fault = (one) => (one === call ? Errno.EIO : one === 'DESTROY_DEV' ? Errno.EBUSY : undefined);
    const before = await holding();
    const setup = await makeSetup(kernel);
    await assert.rejects(setup.createTransport(), (error: Error) => {
      assert.doesNotMatch(error.message, /destroy/);
      return true;
    });
    await setup.release();
    assert.deepEqual(kernel.held, ['the device']);
    assert.deepEqual(await holding(), before);
  }
});

test('taking over a device: whatever fails, nothing stays', async () => {
  const adopt = async (fault: Fault | undefined): Promise<string[]> => {
    const kernel = new FakeVduse();
    const before = await holding();
    const setup = await makeSetup(kernel);
    const first = await setup.createTransport();
    await first.close();
    kernel.created = { ...emptyDevice, name: 'disk0', queueCount: 2 };
    kernel.calls.length = 0;
    kernel.fault = (call, nth) => (call === fault?.call && nth === fault.nth ? fault.errno : undefined);
    try {
      const transport = await VduseTransport.adopt(setup.transportOptions());
      assert.equal(transport.active, true);
      await transport.close();
    } catch (error) {
      assert.ok(error instanceof VduseError || fault?.call === 'openDevice', String(error));
    }
    await setup.release();
    const what = fault === undefined ? 'no fault' : `${fault.call} #${fault.nth}`;
    const left = leftIn(kernel, fault).filter((one) => one !== 'the device');
    assert.deepEqual(left, [], what);
    assert.deepEqual(await holding(), before, what);
    return kernel.calls;
  };
  const calls = (await adopt(undefined)).filter((call) => !['close', 'DESTROY_DEV'].includes(call));
  for (const [at, call] of calls.entries()) {
    const nth = calls.slice(0, at).filter((one) => one === call).length;
    await adopt({ call, nth, errno: Errno.EIO });
  }
});

const emptyDevice = {
  name: '',
  vendorId: 0,
  deviceId: 2,
  features: 0n,
  queueCount: 0,
  queueAlignment: 4096,
  groups: 1,
  addressSpaces: 1,
  config: new Uint8Array(),
};
