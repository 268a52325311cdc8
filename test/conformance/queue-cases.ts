/** A device's own ioctls: queues, kicks, interrupts, configuration. */
import { closeSync, openSync } from 'node:fs';
import {
  decodeU64,
  encodeConfigData,
  encodeQueueConfig,
  encodeQueueEventFd,
  encodeQueueInfo,
  encodeU64,
  VduseIoctl,
} from '../../src/native/vduse-abi.js';
import { type CaseContext, type ConformanceCase, outcome } from './conformance-case.js';
import { eventFd, ScriptedDevice, wasSignalled } from './scripted-device.js';

function setupRules(api: number): ConformanceCase['run'] {
  return async (context) => {
    if (context.bench.newestApi < api) {
      return;
    }
    const device = ScriptedDevice.create(context, 'setup', { api });
    const setup = (
      what: string,
      expected: string | number,
      queue: { index?: number; maxSize?: number; group?: number },
      edit?: (bytes: Uint8Array) => void,
    ): void => {
      const bytes = encodeQueueConfig({ index: 0, maxSize: 64, group: 0, ...queue });
      edit?.(bytes);
      context.expect(what, outcome(device.ioctl(VduseIoctl.VQ_SETUP, bytes)), expected);
    };
    setup('a queue', 0, {});
    setup('the last queue', 0, { index: 1 });
    setup('beyond it', 'EINVAL', { index: 2 });
    setup('far beyond it', 'EINVAL', { index: 0xffff_ffff });
    setup('no power of two', 0, { maxSize: 63 });
    setup('65535 elements', 0, { maxSize: 0xffff });
    setup('no elements', 0, { maxSize: 0 });
    setup('a group that is not there', 'EINVAL', { group: 1 });
    for (const at of [6, 7, 12, 16, 28, 31]) {
      setup(`byte ${at} set`, 'EINVAL', {}, (bytes) => bytes.fill(1, at, at + 1));
    }
    setup('64 elements', 0, {});
    device.watch();
    await device.kernel.addToBus('setup');
    setup('with DRIVER_OK', api === 0 ? 0 : 'EINVAL', {});
  };
}

async function injectRules(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'inject');
  const queue = (index: number) => {
    const argument = new Uint8Array(new ArrayBuffer(4));
    new DataView(argument.buffer).setUint32(0, index, true);
    return outcome(device.ioctl(VduseIoctl.VQ_INJECT_IRQ, argument));
  };
  const config = () => outcome(device.ioctl(VduseIoctl.DEV_INJECT_CONFIG_IRQ, null));
  context.expect('queue, before', queue(0), 'EINVAL');
  context.expect('configuration, before', config(), 'EINVAL');
  device.answer = (request) => {
    if (request.type === 'set-status') {
      device.requests.length = 0;
      context.expect(`queue, at status ${request.status}`, queue(0), 'EINVAL');
      context.expect(`configuration, at status ${request.status}`, config(), 'EINVAL');
    }
    return 'ok';
  };
  device.watch();
  await device.kernel.addToBus('inject');
  device.answer = () => 'ok';
  context.expect('queue', queue(0), 0);
  context.expect('a queue that is not ready', queue(1), 0);
  context.expect('no queue', queue(2), 'EINVAL');
  context.expect('configuration', config(), 0);
  await device.kernel.removeFromBus('inject');
  context.expect('queue, after', queue(0), 'EINVAL');
  context.expect('configuration, after', config(), 'EINVAL');
}

async function configRules(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'config');
  const set = (offset: number, length: number) => {
    const bytes = encodeConfigData(offset, new Uint8Array(length));
    return outcome(device.ioctl(VduseIoctl.DEV_SET_CONFIG, bytes));
  };
  const announced = (offset: number, length: number) => {
    const bytes = encodeConfigData(offset, new Uint8Array(64));
    new DataView(bytes.buffer).setUint32(4, length, true);
    return outcome(device.ioctl(VduseIoctl.DEV_SET_CONFIG, bytes));
  };
  context.expect('all of it', set(0, 60), 0);
  context.expect('its last byte', set(59, 1), 0);
  context.expect('nothing', set(0, 0), 'EINVAL');
  context.expect('nothing at its end', set(60, 0), 'EINVAL');
  context.expect('one byte too many', set(0, 61), 'EINVAL');
  context.expect('at its end', set(60, 1), 'EINVAL');
  context.expect('beyond its end', set(61, 1), 'EINVAL');
  context.expect('far beyond its end', announced(0xffff_ffff, 1), 'EINVAL');
  context.expect('a sum that wraps', announced(8, 0xffff_fffc), 'EINVAL');
  const empty = ScriptedDevice.create(context, 'config-0', { config: { config: new Uint8Array(0) } });
  const bytes = encodeConfigData(0, new Uint8Array(1));
  context.expect('where there is none', outcome(empty.ioctl(VduseIoctl.DEV_SET_CONFIG, bytes)), 'EINVAL');
}

async function kickFds(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'kickfd');
  const file = openSync('/dev/null', 'r');
  context.after(() => closeSync(file));
  const set = (index: number, fd: number) => outcome(device.setKickFd(index, fd));
  context.expect('an eventfd', set(0, eventFd(context)), 0);
  context.expect('another one', set(0, eventFd(context)), 0);
  context.expect('none', set(0, -1), 0);
  context.expect('none again', set(0, -1), 0);
  context.expect('-2', set(0, -2), 0);
  context.expect('a closed one', set(0, 0x7fff_0000), 'EBADF');
  context.expect('no eventfd', set(0, file), 'EINVAL');
  context.expect('no such queue', set(2, -1), 'EINVAL');
  context.expect('no such queue, bad descriptor', set(2, 0x7fff_0000), 'EINVAL');
}

/** A kick that came before its eventfd is kept for it; a reset takes eventfds away. */
async function kicks(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'kicks');
  const [first, second] = [eventFd(context), eventFd(context)];
  device.setKickFd(0, first);
  device.watch();
  await device.kernel.addToBus('kicks');
  context.expect('nothing before a request', wasSignalled(first), false);
  let id = context.session().diskId('kicks');
  await device.available();
  context.expect('an eventfd from before the first reset', wasSignalled(first), false);
  context.expect('a kick before its eventfd', outcome(device.setKickFd(0, second)), 0);
  context.expect('it is remembered', wasSignalled(second), true);
  device.setKickFd(0, first);
  context.expect('only once', wasSignalled(first), false);
  const lengths = device.serveId(0, 'first');
  context.expect('the request', lengths, [16, 20, 1]);
  device.ioctl(VduseIoctl.VQ_INJECT_IRQ, new Uint8Array(new ArrayBuffer(4)));
  context.expect('its answer', await id, 'first');
  id = context.session().diskId('kicks');
  await device.available(1);
  context.expect('a kick', wasSignalled(first), true);
  context.expect('not to the one before', wasSignalled(second), false);
  device.serveId(1, 'second');
  device.ioctl(VduseIoctl.VQ_INJECT_IRQ, new Uint8Array(new ArrayBuffer(4)));
  context.expect('its answer, too', await id, 'second');
  device.unmap();
  await device.kernel.removeFromBus('kicks');
  device.setKickFd(0, second);
  await device.kernel.addToBus('kicks');
  id = context.session().diskId('kicks');
  await device.available();
  context.expect('a reset took the eventfd away', wasSignalled(second) || wasSignalled(first), false);
  device.setKickFd(0, -1);
  context.expect('none asked for', wasSignalled(second) || wasSignalled(first), false);
  device.setKickFd(0, second);
  context.expect('remembered beyond -1', wasSignalled(second), true);
  device.serveId(0, 'third');
  device.ioctl(VduseIoctl.VQ_INJECT_IRQ, new Uint8Array(new ArrayBuffer(4)));
  context.expect('after a second attach', await id, 'third');
}

async function queueInfo(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'info');
  const describe = (index: number): string => {
    const info = device.queueInfo(index);
    const addresses = [info.descriptorAddress, info.driverAddress, info.deviceAddress];
    const places = addresses.map((address) => (address === 0 ? '0' : address < 2 ** 30 ? 'low' : 'coherent'));
    return `${info.size} ${places.join(' ')} ${info.availIndex} ${info.ready}`;
  };
  const features = (): string => {
    const argument = encodeU64(99n);
    const result = device.ioctl(VduseIoctl.DEV_GET_FEATURES, argument);
    return result < 0 ? String(outcome(result)) : decodeU64(argument).toString(16);
  };
  context.expect('before', describe(0), '0 0 0 0 0 false');
  context.expect('features before', features(), '0');
  const beyond = outcome(device.ioctl(VduseIoctl.VQ_GET_INFO, encodeQueueInfo(2)));
  context.expect('no such queue', beyond, 'EINVAL');
  const seen: string[] = [];
  device.answer = (request) => {
    seen.push(request.type === 'set-status' ? `${request.status}: ${features()}` : request.type);
    return 'ok';
  };
  device.watch();
  await device.kernel.addToBus('info');
  const attached = ['0: 0', '1: 0', '3: 0', '11: 300000000', '15: 300000000'];
  context.expect('features at each status', seen.splice(0), attached);
  context.expect('a ready queue', describe(0), '64 coherent coherent coherent 0 true');
  context.expect('a queue that the driver leaves out', describe(1), '0 0 0 0 0 false');
  await device.kernel.removeFromBus('info');
  context.expect('features at each status of the end', seen, ['0: 300000000', '1: 0']);
  context.expect('after', describe(0), '0 0 0 0 0 false');
}

export const queueCases: readonly ConformanceCase[] = [
  { name: 'VQ_SETUP, API 0', run: setupRules(0) },
  { name: 'VQ_SETUP, API 1', run: setupRules(1) },
  { name: 'VQ_SETUP_KICKFD', run: kickFds },
  { name: 'kicks', run: kicks },
  { name: 'VQ_GET_INFO and features', run: queueInfo },
  { name: 'DEV_SET_CONFIG', run: configRules },
  { name: 'interrupts', run: injectRules },
  {
    name: 'ioctls of a device',
    run: async (context) => {
      const device = ScriptedDevice.create(context, 'ioctls');
      context.expect('unknown', outcome(device.ioctl(0x817f, null)), 'ENOTTY');
      const api = outcome(device.ioctl(VduseIoctl.GET_API_VERSION, encodeU64(0n)));
      context.expect("the control device's", api, 'ENOTTY');
      for (const [name, request] of Object.entries(VduseIoctl)) {
        if (
          (request >>> 16) % 0x4000 !== 0 &&
          ((request >>> 8) & 0xff) === 0x81 &&
          (request & 0xff) >= 0x10
        ) {
          const expected = request === VduseIoctl.IOTLB_GET_FD2 ? 'ENOTTY' : 'EFAULT';
          context.expect(`${name} of nothing`, outcome(device.ioctl(request, null)), expected);
        }
      }
      const eventfd = encodeQueueEventFd(0, -1);
      const otherSize = (VduseIoctl.VQ_SETUP_KICKFD & ~0x3fff_0000) | (16 << 16);
      context.expect('another size', outcome(device.ioctl(otherSize >>> 0, eventfd)), 'ENOTTY');
    },
  },
];
