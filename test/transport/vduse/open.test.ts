/** Opening: the control device, device nodes that take their time, names, and devices of a dead process. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VduseError } from '../../../src/base/errors.js';
import { Errno } from '../../../src/native/errno.js';
import { VduseControl } from '../../../src/transport/vduse/control.js';
import { checkDeviceName } from '../../../src/transport/vduse/device-name.js';
import { openDeviceFile } from '../../../src/transport/vduse/open-device.js';
import { VduseTransport } from '../../../src/transport/vduse/vduse-transport.js';
import { memoryNode } from '../../support/blk.js';
import { FakeVduse } from '../../support/fake-vduse-kernel.js';
import { makeTestPool } from '../../support/leftovers.js';
import { VduseSetup } from '../../support/vduse-setup.js';
import { within } from '../../support/within.js';

const pool = makeTestPool({ size: 1 });

const device = {
  name: 'disk0',
  vendorId: 0,
  deviceId: 2,
  features: 1n << 33n,
  queueCount: 1,
  queueAlignment: 4096,
  config: new Uint8Array(60),
};

describe('the control device', () => {
  for (const [errno, code, hint] of [
    [Errno.ENOENT, 'MODULE_MISSING', /modprobe -a vduse virtio_vdpa/],
    [Errno.ENODEV, 'MODULE_MISSING', /modprobe/],
    [Errno.EACCES, 'PERMISSION_DENIED', /root.*udev rule/],
    [Errno.EPERM, 'PERMISSION_DENIED', /root/],
  ] as const) {
    test(`that can not be opened (errno ${errno}) is ${code}`, () => {
      const kernel = new FakeVduse();
      kernel.fault = () => errno;
      assert.throws(
        () => new VduseControl(kernel),
        (error: unknown) => {
          assert.ok(error instanceof VduseError);
          assert.equal(error.code, code);
          assert.match(error.hint ?? '', hint);
          return true;
        },
      );
    });
  }

  test('that refuses the version is closed again', () => {
    const kernel = new FakeVduse();
    kernel.fault = (call) => (call === 'SET_API_VERSION' ? Errno.EINVAL : undefined);
    assert.throws(() => new VduseControl(kernel), {
      code: 'SYSTEM_CALL',
      message: /API version 1 was refused.*EINVAL/,
    });
    assert.deepEqual(kernel.held, []);
  });

  test('says what is wrong with a device', () => {
    const kernel = new FakeVduse();
    const control = new VduseControl(kernel);
    control.create(device);
    assert.throws(() => control.create(device), {
      code: 'ALREADY_EXISTS',
      message: /'disk0' exists already/,
    });
    assert.throws(() => control.destroy('other'), { code: 'NOT_FOUND', message: /'other'/ });
    kernel.onBus = true;
    assert.throws(() => control.destroy('disk0'), { code: 'BUSY' });
    kernel.onBus = false;
    control.destroy('disk0');
    kernel.fault = (call) => (call === 'CREATE_DEV' ? Errno.EINVAL : undefined);
    assert.throws(() => control.create(device), {
      code: 'NOT_SUPPORTED',
      message: /refused the VDUSE device 'disk0': its type 2, features 0x200000000, 1 queues or 60 config/,
    });
    kernel.fault = (call) => (call === 'CREATE_DEV' ? Errno.ENOSPC : undefined);
    assert.throws(() => control.create(device), { code: 'SYSTEM_CALL', message: /cannot make .*ENOSPC/ });
    control.close();
    assert.deepEqual(kernel.held, []);
  });
});

describe("a device's node", () => {
  const open = (kernel: FakeVduse) => openDeviceFile({ kernel, name: 'disk0', apiVersion: 1 });

  test('is waited for, and for its permissions', async () => {
    for (const errno of [Errno.ENOENT, Errno.EACCES]) {
      const kernel = new FakeVduse();
      const control = new VduseControl(kernel);
      control.create(device);
      kernel.fault = (call, nth) => (call === 'openDevice' && nth < 3 ? errno : undefined);
      const file = await open(kernel);
      assert.equal(kernel.calls.filter((call) => call === 'openDevice').length, 4);
      file.close();
      control.destroy('disk0');
      control.close();
      assert.deepEqual(kernel.held, []);
    }
  });

  test('that another process serves is BUSY at once', async () => {
    const kernel = new FakeVduse();
    kernel.fault = (call) => (call === 'openDevice' ? Errno.EBUSY : undefined);
    await assert.rejects(open(kernel), { code: 'BUSY', hint: /vduse list/ });
    assert.equal(kernel.calls.length, 1);
  });

  test('that fails otherwise is that failure at once', async () => {
    const kernel = new FakeVduse();
    kernel.fault = (call) => (call === 'openDevice' ? Errno.EIO : undefined);
    await assert.rejects(open(kernel), { code: 'SYSTEM_CALL' });
    assert.equal(kernel.calls.length, 1);
  });
});

test('names that a device node or the kernel could not live with are refused before anything is made', async () => {
  for (const name of ['disk0', 'a', 'vm-1.disk_2', 'A:b@c+d', 'x'.repeat(255)]) {
    checkDeviceName(name);
  }
  const bad: [string, RegExp][] = [
    ['', /it is empty/],
    ['x'.repeat(256), /longer than 255 bytes/],
    ['ä'.repeat(128), /longer than 255 bytes/],
    ['control', /reserved/],
    ['.', /reserved/],
    ['..', /reserved/],
    ['a/b', /slash/],
    ['a b', /character/],
    ['a\0b', /character/],
    ['a\n', /character/],
    ['ä', /character/],
  ];
  for (const [name, message] of bad) {
    assert.throws(() => checkDeviceName(name), { code: 'INVALID_ARGUMENT', message, hint: /disk0/ }, name);
  }
  const setup = await VduseSetup.make({ node: await memoryNode(4096), hosts: pool, name: 'a/b' });
  await assert.rejects(setup.createTransport(), { code: 'INVALID_ARGUMENT' });
  assert.deepEqual(setup.kernel.calls, []);
  await setup.release();
});

describe('taking over a device', () => {
  const adopted = async (running: boolean): Promise<VduseSetup> => {
    const setup = await VduseSetup.make({ node: await memoryNode(1 << 20), hosts: pool });
    const { kernel } = setup;
    const control = new VduseControl(kernel);
    control.create(device);
    control.close();
    if (!running) {
      kernel.forgetDriver();
    }
    return setup;
  };

  test('that a driver uses starts it, without making it or setting up its queues', async () => {
    const setup = await adopted(true);
    const before = setup.kernel.calls.length;
    setup.transport = await VduseTransport.adopt(setup.transportOptions());
    const calls = setup.kernel.calls.slice(before);
    assert.ok(!calls.includes('CREATE_DEV') && !calls.includes('VQ_SETUP'));
    assert.equal(setup.transport.active, true);
    assert.equal((await setup.client.read(0, 512)).status, 0);
    await setup.close();
  });

  test('that nobody uses waits for a driver', async () => {
    const setup = await adopted(false);
    setup.transport = await VduseTransport.adopt(setup.transportOptions());
    assert.equal(setup.transport.active, false);
    assert.ok((await setup.kernel.setStatus(0)).ok);
    await setup.close();
  });

  test('answers what the dead process had not, after the start', async () => {
    const setup = await adopted(true);
    const reset = setup.kernel.setStatus(0);
    await sleep(5);
    setup.transport = await VduseTransport.adopt(setup.transportOptions());
    assert.ok((await within(3000, 'the answer to the reset', () => reset)).ok);
    assert.equal(setup.transport.active, false);
    assert.ok(!setup.kernel.held.some((what) => what.startsWith('kick')));
    await setup.close();
  });
});
