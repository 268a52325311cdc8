/** The status state machine (virtio 1.3, 2.1 and 3.1) with a device that only records. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type ActivationSource, DeviceController } from '../../src/device/device-controller.js';
import {
  type Activation,
  type DeviceListener,
  DeviceStatus,
  type QuiesceOptions,
  type QuiesceResult,
  type VirtioDevice,
} from '../../src/device/virtio-device.js';

const VERSION_1 = 1n << 32n;
const ACCESS_PLATFORM = 1n << 33n;
const FLUSH = 1n << 9n;
const { ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK, FAILED } = DeviceStatus;
const ready = ACKNOWLEDGE | DRIVER | FEATURES_OK;

class Recorder implements VirtioDevice, ActivationSource {
  readonly log: string[] = [];
  readonly deviceId = 2;
  readonly vendorId = 0;
  readonly deviceFeatures = VERSION_1 | FLUSH;
  readonly config = new Uint8Array();
  readonly queueCount = 1;
  readonly queueSizeMax = 4;
  accepted = VERSION_1 | ACCESS_PLATFORM;
  failure: Error | undefined;
  preparation: Error | undefined;
  stop: QuiesceResult = { drained: true, availIndices: new Map([[0, 7]]) };

  setListener(_listener: DeviceListener | undefined): void {}

  async activate(activation: Activation): Promise<void> {
    this.log.push(`activate ${activation.features.toString(16)}`);
    if (this.failure !== undefined) {
      throw this.failure;
    }
  }

  async quiesce({ timeoutMs }: QuiesceOptions): Promise<QuiesceResult> {
    this.log.push(`quiesce ${timeoutMs}`);
    return this.stop;
  }

  updateMemory(): void {}

  availIndex(): number {
    return 99;
  }

  driverFeatures(): bigint {
    return this.accepted;
  }

  prepareActivation(features: bigint, availIndices: ReadonlyMap<number, number>): Activation {
    this.log.push(`prepare ${JSON.stringify([...availIndices])}`);
    if (this.preparation !== undefined) {
      throw this.preparation;
    }
    return { features, queues: [], memory: [] };
  }

  onStopped(drained: boolean): void {
    this.log.push(`stopped ${drained}`);
  }

  take(): string[] {
    return this.log.splice(0);
  }
}

function make(): { recorder: Recorder; controller: DeviceController } {
  const recorder = new Recorder();
  return { recorder, controller: new DeviceController(recorder, recorder) };
}

const startLog = ['prepare []', 'activate 300000000'];

async function makeActive(): Promise<{ recorder: Recorder; controller: DeviceController }> {
  const made = make();
  await made.controller.setStatus(ready | DRIVER_OK, 100);
  assert.deepEqual(made.recorder.take(), startLog);
  return made;
}

test('3.1.1: the driver goes up step by step, and DRIVER_OK starts the device once', async () => {
  const { recorder, controller } = make();
  for (const status of [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ready]) {
    await controller.setStatus(status, 100);
    assert.equal(controller.status, status);
    assert.equal(controller.active, false);
  }
  assert.deepEqual(recorder.take(), []);
  await controller.setStatus(ready | DRIVER_OK, 100);
  await controller.setStatus(ready | DRIVER_OK, 100);
  assert.equal(controller.active, true);
  assert.deepEqual(recorder.take(), startLog);
});

describe('2.2: features', () => {
  for (const [what, accepted, message] of [
    ['that were not offered', VERSION_1 | (1n << 5n), /not offered: 0x20$/],
    ['without VERSION_1', FLUSH, /did not accept VERSION_1/],
  ] as const) {
    test(`${what} are refused, and the status stays`, async () => {
      const { recorder, controller } = make();
      recorder.accepted = accepted;
      await controller.setStatus(ACKNOWLEDGE | DRIVER, 100);
      await assert.rejects(controller.setStatus(ready, 100), { code: 'PROTOCOL', message });
      assert.equal(controller.status, ACKNOWLEDGE | DRIVER);
      await assert.rejects(controller.setStatus(ready | DRIVER_OK, 100), { code: 'PROTOCOL' });
      assert.deepEqual([controller.active, recorder.take()], [false, []]);
    });
  }

  test('that change between FEATURES_OK and DRIVER_OK are looked at again', async () => {
    const { recorder, controller } = make();
    await controller.setStatus(ready, 100);
    recorder.accepted = VERSION_1 | (1n << 40n);
    await assert.rejects(controller.setStatus(ready | DRIVER_OK, 100), { code: 'PROTOCOL' });
    assert.equal(controller.active, false);
  });
});

test('2.1.1: a reset stops the device in its time and forgets where its queues were', async () => {
  const { recorder, controller } = await makeActive();
  assert.equal(controller.availIndex(0), 99);
  await controller.setStatus(0, 55);
  assert.deepEqual(recorder.take(), ['quiesce 55', 'stopped true']);
  assert.deepEqual([controller.status, controller.active, controller.availIndex(0)], [0, false, 0]);
  await controller.setStatus(0, 55);
  assert.deepEqual(recorder.take(), []);
  await controller.setStatus(ready | DRIVER_OK, 100);
  assert.deepEqual(recorder.take(), startLog);
});

test('2.1: FAILED stops the device', async () => {
  const { recorder, controller } = await makeActive();
  await controller.setStatus(ready | DRIVER_OK | FAILED, 10);
  assert.deepEqual(recorder.take(), ['quiesce 10', 'stopped true']);
  assert.equal(controller.active, false);
});

describe('another memory map', () => {
  test('stops, and goes on where the queues were', async () => {
    const { recorder, controller } = await makeActive();
    await controller.remap(20);
    assert.deepEqual(recorder.take(), [
      'quiesce 20',
      'stopped true',
      'prepare [[0,7]]',
      'activate 300000000',
    ]);
    assert.equal(controller.active, true);
  });

  test('is nothing to a device that does not run', async () => {
    const { recorder, controller } = make();
    await controller.remap(20);
    assert.deepEqual(recorder.take(), []);
  });

  test('is refused while requests hold on to the old one; the device stays stopped', async () => {
    const { recorder, controller } = await makeActive();
    recorder.stop = { drained: false, availIndices: new Map([[0, 7]]) };
    await assert.rejects(controller.remap(20), { code: 'TIMEOUT' });
    assert.deepEqual(recorder.take(), ['quiesce 20', 'stopped false']);
    assert.equal(controller.active, false);
    assert.equal(controller.availIndex(0), 7);
    await controller.setStatus(0, 20);
    assert.equal(controller.status, 0);
  });
});

describe('an activation that fails', () => {
  test('is undone: what runs of it is stopped before the memory goes', async () => {
    const { recorder, controller } = make();
    recorder.failure = new Error('ring');
    for (const drained of [true, false]) {
      recorder.stop = { drained, availIndices: new Map() };
      await assert.rejects(controller.setStatus(ready | DRIVER_OK, 30), { message: 'ring' });
      assert.deepEqual(recorder.take(), [...startLog, 'quiesce 30', `stopped ${drained}`]);
      assert.deepEqual([controller.active, controller.status], [false, 0]);
    }
    recorder.failure = undefined;
    await controller.setStatus(ready | DRIVER_OK, 30);
    assert.equal(controller.active, true);
  });

  test('also before the device hears of it', async () => {
    const { recorder, controller } = make();
    recorder.preparation = new Error('map');
    await assert.rejects(controller.setStatus(ready | DRIVER_OK, 30), { message: 'map' });
    assert.deepEqual(recorder.take(), ['prepare []', 'quiesce 30', 'stopped true']);
  });
});

test('a device that another process served is started where it is said to be', async () => {
  const running = make();
  await running.controller.resume(DRIVER_OK, 10);
  assert.deepEqual([running.controller.active, running.recorder.take()], [true, startLog]);
  const idle = make();
  await idle.controller.resume(0, 10);
  assert.deepEqual([idle.controller.active, idle.recorder.take()], [false, []]);
});
