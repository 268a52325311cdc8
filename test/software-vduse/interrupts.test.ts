/** Whose the interrupts' eventfds are: a device may signal them longer than its driver keeps its own. */
import assert from 'node:assert/strict';
import { readlinkSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { closeFd, createEventFd } from '../../src/native/fd.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VhostVdpa } from '../../src/software-vduse/vhost-vdpa.js';
import type { CaseContext } from '../conformance/conformance-case.js';
import { ScriptedDevice } from '../conformance/scripted-device.js';
import { softwareBench } from '../conformance/software-bench.js';
import { openFdCount } from '../support/resources.js';

/** A scripted device on a bus whose driver is the test. */
async function makeDevice(t: TestContext) {
  const bus = new VhostVdpa();
  const kernel = new SoftwareVduse({ busDriver: bus });
  const session = { ...softwareBench(1).open({}), kernel };
  const undo: (() => unknown)[] = [];
  const context: CaseContext = {
    bench: softwareBench(1),
    session: () => session,
    expect: (what, found, expected) => assert.deepEqual(found, expected, what),
    after: (step) => undo.push(step),
  };
  t.after(async () => {
    for (const step of undo.reverse()) {
      await step();
    }
  });
  const device = ScriptedDevice.create(context, 'calls');
  device.watch();
  await kernel.addToBus('calls');
  const driver = bus.device('calls');
  assert(driver !== undefined);
  return { kernel, device, driver };
}

function isEventFd(fd: number): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]';
  } catch {
    return false;
  }
}

const rings = { size: 16, descriptorAddress: 0, driverAddress: 0, deviceAddress: 0 };

test('a call eventfd is the device’s own until a reset that it agrees to', async (t) => {
  const { kernel, device, driver } = await makeDevice(t);
  const call = createEventFd();
  driver.setQueue(0, { ...rings, callFd: call });
  const notifier = kernel.notifier(device.fd, 0);
  assert(notifier.kind === 'eventfd');
  assert.notEqual(notifier.fd, call);
  await driver.reset();
  assert(!isEventFd(notifier.fd), 'closed with the reset');
  assert(isEventFd(call), 'the driver’s own stays');
  assert.deepEqual(kernel.notifier(device.fd, 0), { kind: 'none' });
  closeFd(call);
});

test('a reset that the device refuses keeps its number until the device is destroyed', async (t) => {
  const { kernel, device, driver } = await makeDevice(t);
  const before = openFdCount();
  const call = createEventFd();
  driver.setQueue(0, { ...rings, callFd: call });
  const notifier = kernel.notifier(device.fd, 0);
  assert(notifier.kind === 'eventfd');
  device.answer = () => 'failed';
  assert.equal(await driver.reset(), false);
  closeFd(call);
  assert(isEventFd(notifier.fd), 'a thread of the device may still write to it');
  assert.deepEqual(kernel.notifier(device.fd, 0), { kind: 'none' });
  await device.destroy();
  assert(!isEventFd(notifier.fd));
  // The device's node and what says that it is readable have gone, too, and the domain.
  assert.equal(openFdCount(), before - 3);
});
