/** The control device: API versions, and the rules by which devices are made and destroyed. */
import {
  decodeU64,
  encodeDeviceConfig,
  encodeDeviceName,
  encodeU64,
  type VduseDeviceConfig,
  VduseIoctl,
} from '../../src/native/vduse-abi.js';
import { type CaseContext, type ConformanceCase, outcome } from './conformance-case.js';
import { ACCESS_PLATFORM, deviceConfig, openControl, ScriptedDevice, VERSION_1 } from './scripted-device.js';

/** API 1 wants what API 0 forbids. */
function groups(api: number): Partial<VduseDeviceConfig> {
  return { groupCount: api, addressSpaceCount: api };
}

/** Makes a device and, where that worked, destroys it again. */
function tryCreate(context: CaseContext, control: number, bytes: Uint8Array): string | number {
  const { kernel } = context.session();
  const result = kernel.ioctl(control, VduseIoctl.CREATE_DEV, bytes);
  if (result === 0) {
    const name = bytes.slice(0, 256);
    const destroyed = kernel.ioctl(control, VduseIoctl.DESTROY_DEV, name);
    if (destroyed !== 0) {
      throw new Error(`DESTROY_DEV: ${outcome(destroyed)}`);
    }
  }
  return outcome(result);
}

function createRules(api: number): ConformanceCase['run'] {
  return async (context) => {
    if (context.bench.newestApi < api) {
      return;
    }
    const control = openControl(context, api);
    const attempt = (
      what: string,
      expected: string | number,
      changes: Partial<VduseDeviceConfig>,
      edit?: (bytes: Uint8Array) => void,
    ): void => {
      const bytes = encodeDeviceConfig(deviceConfig('rules', { ...groups(api), ...changes }));
      edit?.(bytes);
      context.expect(what, tryCreate(context, control, bytes), expected);
    };
    const features = VERSION_1 | ACCESS_PLATFORM;
    attempt('a device', 0, {});
    for (let at = api === 0 ? 280 : 288; at < 332; at += 4) {
      attempt(`byte ${at} set`, 'EINVAL', {}, (bytes) => bytes.fill(1, at, at + 1));
    }
    if (api === 1) {
      attempt('no groups', 'EINVAL', { groupCount: 0 });
      attempt('no address spaces', 'EINVAL', { addressSpaceCount: 0 });
      attempt('two groups', 0, { groupCount: 2 });
      attempt('two address spaces', 0, { groupCount: 2, addressSpaceCount: 2 });
      attempt('65535 groups', 0, { groupCount: 0xffff });
      attempt('65536 groups', 'EINVAL', { groupCount: 0x10000 });
      attempt('65536 address spaces', 'EINVAL', { addressSpaceCount: 0x10000 });
    }
    for (const alignment of [0, 1, 2, 3, 4, 8, 16, 64, 512, 3000, 4096, 4097, 8192, 0xffff_ffff]) {
      const fits = alignment >= 4 && alignment <= 4096 && (alignment & (alignment - 1)) === 0;
      attempt(`vq_align ${alignment}`, fits ? 0 : 'EINVAL', { queueAlignment: alignment });
    }
    attempt('no configuration', 0, { config: new Uint8Array(0) });
    attempt('4096 bytes of configuration', 0, { config: new Uint8Array(4096) });
    attempt('4097 bytes of configuration', 'EINVAL', { config: new Uint8Array(4097) });
    attempt('no queues', 0, { queueCount: 0 });
    attempt('300 queues', 0, { queueCount: 300 });
    attempt('65536 queues', 'EINVAL', { queueCount: 0x10000 });
    attempt('no name', 'EINVAL', { name: '' });
    attempt('a name of 255 bytes', 0, { name: 'n'.repeat(255) });
    for (const [deviceId, expected] of [
      [0, 'EINVAL'],
      [1, 0],
      [2, 0],
      [3, 'EINVAL'],
      [8, 'EINVAL'],
      [26, 0],
      [0xffff_ffff, 'EINVAL'],
    ] as const) {
      attempt(`device type ${deviceId}`, expected, { deviceId });
    }
    attempt('without ACCESS_PLATFORM', 'EINVAL', { features: VERSION_1 });
    attempt('a disk without VERSION_1', 0, { features: ACCESS_PLATFORM });
    attempt('a network card without VERSION_1', 'EINVAL', { deviceId: 1, features: ACCESS_PLATFORM });
    attempt('a disk with CONFIG_WCE', 'EINVAL', { features: features | (1n << 11n) });
    attempt('a disk with bit 17', 0, { features: features | (1n << 17n) });
    attempt('a network card with CTRL_VQ', 'EINVAL', { deviceId: 1, features: features | (1n << 17n) });
    attempt('a network card with bit 11', 0, { deviceId: 1, features: features | (1n << 11n) });
    attempt('all that a queue can', 0, {
      features: features | (1n << 28n) | (1n << 29n) | (1n << 34n) | (1n << 35n) | (1n << 40n),
    });
    attempt('unknown features', 0, { features: features | (1n << 63n) });
  };
}

export const controlCases: readonly ConformanceCase[] = [
  {
    name: 'API versions',
    run: async (context) => {
      const { kernel } = context.session();
      const fd = kernel.openControl();
      context.after(() => kernel.close(fd));
      const version = (): number => {
        const argument = encodeU64(99n);
        const result = kernel.ioctl(fd, VduseIoctl.GET_API_VERSION, argument);
        return result < 0 ? result : Number(decodeU64(argument));
      };
      const set = (value: bigint) => outcome(kernel.ioctl(fd, VduseIoctl.SET_API_VERSION, encodeU64(value)));
      context.expect('newest', version(), 1);
      context.expect('set 0', set(0n), 0);
      context.expect('after it', version(), 0);
      context.expect('set 1', set(1n), 0);
      context.expect('after that', version(), 1);
      context.expect('set 2', set(2n), 'EINVAL');
      context.expect('set 2^32', set(1n << 32n), 'EINVAL');
      context.expect('after a refusal', version(), 1);
      const other = kernel.openControl();
      context.after(() => kernel.close(other));
      kernel.ioctl(other, VduseIoctl.SET_API_VERSION, encodeU64(0n));
      context.expect('another opener has its own', version(), 1);
    },
  },
  { name: 'create, API 0', run: createRules(0) },
  { name: 'create, API 1', run: createRules(1) },
  {
    name: 'control device',
    run: async (context) => {
      const { kernel } = context.session();
      const control = openControl(context, 0);
      const read = new Uint8Array(new ArrayBuffer(152));
      context.expect('read', outcome(kernel.read(control, read)), 'EINVAL');
      context.expect('write', outcome(kernel.write(control, read)), 'EINVAL');
      const unknown = 0x8008_81_7f;
      context.expect('unknown ioctl', outcome(kernel.ioctl(control, unknown, encodeU64(0n))), 'EINVAL');
      context.expect('unknown ioctl of nothing', outcome(kernel.ioctl(control, 0x817f, null)), 'EINVAL');
      const features = outcome(kernel.ioctl(control, VduseIoctl.DEV_GET_FEATURES, encodeU64(0n)));
      context.expect("a device's ioctl", features, 'EINVAL');
      const nothing = outcome(kernel.ioctl(control, VduseIoctl.GET_API_VERSION, null));
      context.expect('no argument', nothing, 'EFAULT');
      const destroy = (name: string) =>
        outcome(kernel.ioctl(control, VduseIoctl.DESTROY_DEV, encodeDeviceName(name)));
      context.expect('destroy what is not there', destroy('nobody'), 'EINVAL');
      context.expect('destroy no name', destroy(''), 'EINVAL');
    },
  },
  {
    name: 'open and destroy',
    run: async (context) => {
      const device = ScriptedDevice.create(context, 'opener');
      const { kernel, control } = device;
      const open = (name: string): string | number => {
        try {
          kernel.close(kernel.openDevice(name));
          return 'opened';
        } catch (error) {
          return (error as { errnoName?: string }).errnoName ?? String(error);
        }
      };
      const destroy = () =>
        outcome(kernel.ioctl(control, VduseIoctl.DESTROY_DEV, encodeDeviceName('opener')));
      const config = encodeDeviceConfig(deviceConfig('opener'));
      context.expect('a name twice', outcome(kernel.ioctl(control, VduseIoctl.CREATE_DEV, config)), 'EEXIST');
      context.expect('a second opener', open('opener'), 'EBUSY');
      context.expect('no such device', open('nobody'), 'ENOENT');
      context.expect('destroy while open', destroy(), 'EBUSY');
      device.watch();
      await kernel.addToBus('opener');
      context.expect('on the bus', kernel.isOnBus('opener'), true);
      context.expect('destroy while open and on the bus', destroy(), 'EBUSY');
      device.close();
      context.expect('destroy while on the bus', destroy(), 'EBUSY');
      device.open();
      device.watch();
      await kernel.removeFromBus('opener');
      context.expect('off the bus', kernel.isOnBus('opener'), false);
      device.close();
      context.expect('open again', open('opener'), 'opened');
      context.expect('destroy', destroy(), 0);
      context.expect('destroyed', open('opener'), 'ENOENT');
      context.expect('the name again', tryCreate(context, control, config), 0);
      // For what cleans up.
      kernel.ioctl(control, VduseIoctl.CREATE_DEV, config);
    },
  },
  {
    name: 'bus',
    run: async (context) => {
      const device = ScriptedDevice.create(context, 'bus', { setup: false });
      const { kernel } = device;
      const code = async (work: Promise<void>): Promise<string> => {
        try {
          await work;
          return 'done';
        } catch (error) {
          return (error as { code?: string }).code ?? String(error);
        }
      };
      device.watch();
      context.expect('add what is not there', await code(kernel.addToBus('nobody')), 'ATTACH_FAILED');
      context.expect('add before its queues', await code(kernel.addToBus('bus')), 'ATTACH_FAILED');
      context.expect('remove before', await code(kernel.removeFromBus('bus')), 'NOT_FOUND');
      for (let index = 0; index < 2; index++) {
        const argument = new Uint8Array(new ArrayBuffer(32));
        new DataView(argument.buffer).setUint32(0, index, true);
        new DataView(argument.buffer).setUint16(4, 64, true);
        device.ioctl(VduseIoctl.VQ_SETUP, argument);
      }
      context.expect('add', await code(kernel.addToBus('bus')), 'done');
      context.expect('add twice', await code(kernel.addToBus('bus')), 'ALREADY_EXISTS');
      const both = [code(kernel.removeFromBus('bus')), code(kernel.removeFromBus('bus'))];
      context.expect('remove twice at once', (await Promise.all(both)).join(' '), 'done NOT_FOUND');
      const again = [code(kernel.addToBus('bus')), code(kernel.removeFromBus('bus'))];
      context.expect('remove while it is added', (await Promise.all(again)).join(' '), 'done done');
      context.expect('nothing is left', kernel.isOnBus('bus'), false);
    },
  },
];
