/** The IOTLB, and memory that takes the bounce region's place. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { closeFd } from '../../src/native/fd.js';
import { createMemoryFile, mapAnonymous, mapFile, unmap } from '../../src/native/memory.js';
import {
  decodeIotlbEntry,
  decodeIovaInfo,
  encodeIotlbEntryV2,
  encodeIovaInfo,
  encodeUserMemory,
  VduseIoctl,
} from '../../src/native/vduse-abi.js';
import { type CaseContext, type ConformanceCase, outcome } from './conformance-case.js';
import { ScriptedDevice } from './scripted-device.js';

const lastAddress = 0xffff_ffff_ffff_ffffn;
const bounceBytes = 1 << 20;
const nothing = new Uint8Array(new ArrayBuffer(4));

function firstMap(device: ScriptedDevice, start = 0n, last = lastAddress): string {
  const map = device.iotlb(start, last);
  if (typeof map === 'number') {
    return String(outcome(map));
  }
  const place = map.start === 0n ? `bounce to ${map.last}` : map.start >= 1n << 30n ? 'coherent' : 'other';
  return `${place}, perm ${map.access}, offset ${BigInt(map.offset) === map.start ? 'is start' : map.offset}`;
}

function info(device: ScriptedDevice, start = 0n, last = lastAddress, edit?: (bytes: Uint8Array) => void) {
  const argument = encodeIovaInfo({ start, last, addressSpace: 0 });
  edit?.(argument);
  const result = device.ioctl(VduseIoctl.IOTLB_GET_INFO, argument);
  if (result < 0) {
    return outcome(result);
  }
  const found = decodeIovaInfo(argument);
  const place = found.start === 0n ? `bounce to ${found.last}` : 'other';
  return `${place}, ${found.takesUserMemory ? 'replaceable' : 'fixed'}`;
}

/** Has the driver make one request, and serves it. */
async function oneRequest(context: CaseContext, device: ScriptedDevice, at: number): Promise<string> {
  const id = context.session().diskId(device.name);
  await device.available(at);
  device.serveId(at, `id-${at}`);
  device.ioctl(VduseIoctl.VQ_INJECT_IRQ, nothing);
  return await id;
}

async function iotlb(context: CaseContext): Promise<void> {
  context.session({ bounceBytes });
  const device = ScriptedDevice.create(context, 'iotlb');
  context.expect('before it was on the bus', firstMap(device), 'EINVAL');
  context.expect('info before it was on the bus', info(device), 'EINVAL');
  const seen: string[] = [];
  device.answer = (request) => {
    seen.push(`${request.type === 'set-status' ? request.status : request.type}: ${firstMap(device)}`);
    return 'ok';
  };
  device.watch();
  await device.kernel.addToBus('iotlb');
  device.answer = () => 'ok';
  const rings = 'coherent, perm 3, offset is start';
  context.expect('first map at each status', seen, [
    '0: EINVAL',
    '1: EINVAL',
    '3: EINVAL',
    '11: EINVAL',
    `15: ${rings}`,
  ]);
  context.expect('rings', firstMap(device), rings);
  context.expect('info of the rings', info(device), 'other, fixed');
  context.expect('start beyond last', firstMap(device, 1n << 31n, 0n), 'EINVAL');
  context.expect('info, start beyond last', info(device, 1n << 31n, 0n), 'EINVAL');
  context.expect('nothing there', firstMap(device, 0n, 0xffffn), 'EINVAL');
  context.expect('info, nothing there', info(device, 0n, 0xffffn), 'EINVAL');
  context.expect('nothing at the end', firstMap(device, lastAddress, lastAddress), 'EINVAL');
  context.expect(
    'reserved bytes',
    info(device, 0n, lastAddress, (b) => b.fill(1, 40, 41)),
    'EFAULT',
  );
  context.expect('a request', await oneRequest(context, device, 0), 'id-0');
  const bounce = `bounce to ${bounceBytes - 1}`;
  context.expect('bounce region after it', firstMap(device), `${bounce}, perm 3, offset is start`);
  context.expect('info after it', info(device), `${bounce}, replaceable`);
  context.expect('its last byte', info(device, BigInt(bounceBytes - 1)), `${bounce}, replaceable`);
  context.expect('beyond its last byte', info(device, BigInt(bounceBytes)), 'other, fixed');
  device.unmap();
  await device.kernel.removeFromBus('iotlb');
  context.expect('after', firstMap(device), 'EINVAL');
  await device.kernel.addToBus('iotlb');
  context.expect('on the bus again', firstMap(device), rings);
  context.expect('a request again', await oneRequest(context, device, 0), 'id-0');
  context.expect('bounce region again', firstMap(device), `${bounce}, perm 3, offset is start`);
}

function getFd2(api: number): ConformanceCase['run'] {
  return async (context) => {
    if (context.bench.newestApi < api) {
      return;
    }
    const device = ScriptedDevice.create(context, 'fd2', { api });
    const get = (
      range: { start?: bigint; last?: bigint; addressSpace?: number },
      edit?: (bytes: Uint8Array) => void,
    ) => {
      const argument = encodeIotlbEntryV2({ start: 0n, last: lastAddress, addressSpace: 0, ...range });
      edit?.(argument);
      const result = device.ioctl(VduseIoctl.IOTLB_GET_FD2, argument);
      if (result < 0) {
        return outcome(result);
      }
      const entry = decodeIotlbEntry(argument);
      const length = Number(entry.last - entry.start) + 1;
      unmap(mapFile({ fd: result, length, offset: entry.offset, readable: true, writable: true }), length);
      closeFd(result);
      return 'a map';
    };
    const known = (expected: string) => (api === 0 ? 'ENOTTY' : expected);
    context.expect('before', get({}), known('EINVAL'));
    device.watch();
    await device.kernel.addToBus('fd2');
    context.expect('rings', get({}), known('a map'));
    context.expect('nothing there', get({ start: 0n, last: 0xffffn }), known('EINVAL'));
    context.expect('start beyond last', get({ start: 1n << 31n, last: 0n }), known('EINVAL'));
    context.expect('no such address space', get({ addressSpace: 1 }), known('EINVAL'));
    for (const [at, expected] of [
      [25, 'a map'],
      [31, 'a map'],
      [36, 'EINVAL'],
      [40, 'EINVAL'],
      [79, 'EINVAL'],
    ] as const) {
      const found = get({}, (bytes) => bytes.fill(1, at, at + 1));
      context.expect(`byte ${at} set`, found, known(expected));
    }
    const old = firstMap(device);
    context.expect('the first version of it', old, 'coherent, perm 3, offset is start');
    const asid = info(device, 0n, lastAddress, (bytes) => bytes.fill(1, 24, 25));
    context.expect('info of no such address space', asid, 'EFAULT');
  };
}

/** Memory of a file that is shorter than its map. */
function fileMemory(context: CaseContext, file: { fileBytes: number; writable: boolean }): number {
  const fd = createMemoryFile('umem', file.fileBytes);
  const { writable } = file;
  const address = mapFile({ fd, length: bounceBytes, offset: 0, readable: true, writable });
  closeFd(fd);
  context.after(() => unmap(address, bounceBytes));
  return address;
}

/** Runs with room for one locked page. */
function withoutLockedMemory<T>(run: () => T): T {
  const setSoftLimit = (limit: string): void => {
    execFileSync('prlimit', ['--pid', String(process.pid), `--memlock=${limit}:`]);
  };
  const limits = readFileSync('/proc/self/limits', 'utf8');
  const [, soft] = /^Max locked memory +(\S+)/m.exec(limits) ?? [];
  setSoftLimit('4096');
  try {
    return run();
  } finally {
    setSoftLimit(soft);
  }
}

async function userMemory(context: CaseContext): Promise<void> {
  context.session({ bounceBytes });
  const device = ScriptedDevice.create(context, 'umem');
  const address = mapAnonymous(bounceBytes);
  context.after(() => unmap(address, bounceBytes));
  const argument = (memory: { address?: number; iova?: bigint; size?: bigint }) =>
    encodeUserMemory({ address, iova: 0n, size: BigInt(bounceBytes), addressSpace: 0, ...memory });
  const register = (memory: { address?: number; iova?: bigint; size?: bigint } = {}) =>
    outcome(device.ioctl(VduseIoctl.IOTLB_REG_UMEM, argument(memory)));
  const deregister = (memory: { iova?: bigint; size?: bigint } = {}) =>
    outcome(device.ioctl(VduseIoctl.IOTLB_DEREG_UMEM, argument(memory)));
  context.expect('before it was on the bus', register(), 'EINVAL');
  context.expect('deregister before it was on the bus', deregister(), 'ENOENT');
  device.watch();
  await device.kernel.addToBus('umem');
  context.expect('before the bounce region', register(), 'EINVAL');
  context.expect('a request', await oneRequest(context, device, 0), 'id-0');
  context.expect('an odd address', register({ address: address + 512 }), 'EINVAL');
  context.expect('another place', register({ iova: 4096n }), 'EINVAL');
  context.expect('less of it', register({ size: BigInt(bounceBytes - 4096) }), 'EINVAL');
  context.expect('address 0', register({ address: 0 }), 'EFAULT');
  context.expect('an address where nothing is', register({ address: 65_536 }), 'EFAULT');
  const readOnly = fileMemory(context, { fileBytes: bounceBytes, writable: false });
  context.expect('memory that is only read', register({ address: readOnly }), 'EFAULT');
  const short = fileMemory(context, { fileBytes: bounceBytes / 2, writable: true });
  context.expect('memory that ends too early', register({ address: short }), 'ENOMEM');
  context.expect('more than may be locked', withoutLockedMemory(register), 'ENOMEM');
  deregister();
  const reserved = argument({}).fill(1, 40, 41);
  context.expect('reserved bytes', outcome(device.ioctl(VduseIoctl.IOTLB_REG_UMEM, reserved)), 'EINVAL');
  context.expect('deregister what is not there', deregister(), 'ENOENT');
  context.expect('register', register(), 0);
  context.expect('register twice', register(), 'EEXIST');
  device.userMemory = address;
  const id = context.session().diskId('umem');
  await device.available(1);
  device.serveId(1, 'from there');
  device.ioctl(VduseIoctl.VQ_INJECT_IRQ, nothing);
  context.expect('a request on it', await id, 'from there');
  context.expect('deregister another place', deregister({ iova: 4096n }), 'EINVAL');
  context.expect('deregister less', deregister({ size: 4096n }), 'EINVAL');
  context.expect('deregister', deregister(), 0);
  device.userMemory = 0;
  context.expect('deregister twice', deregister(), 'ENOENT');
  context.expect('register again', register(), 0);
  device.close();
  device.open();
  device.watch();
  context.expect('a close takes it back', deregister(), 'ENOENT');
}

/** Every map that there is, as `start + length`. */
function mapped(device: ScriptedDevice): string {
  const found: string[] = [];
  for (let start = 0n; found.length < 8; ) {
    const map = device.iotlb(start, lastAddress);
    if (typeof map === 'number') {
      break;
    }
    found.push(`${map.start} + ${map.last - map.start + 1n}`);
    start = map.last + 1n;
  }
  return found.join(', ');
}

async function updateIotlb(context: CaseContext): Promise<void> {
  const session = context.session({ directMaps: true });
  const device = ScriptedDevice.create(context, 'maps');
  const seen: string[] = [];
  device.answer = (request) => {
    if (request.type === 'update-iotlb') {
      seen.push(`${request.start} to ${request.last}: ${mapped(device)}`);
    }
    return 'ok';
  };
  device.watch();
  await device.kernel.addToBus('maps');
  const done = await session.changeMaps('maps', [
    { kind: 'map', iova: 1 << 20 },
    { kind: 'map', iova: 2 << 20 },
    { kind: 'unmap', iova: 1 << 20 },
  ]);
  context.expect('the driver', done, ['done', 'done', 'done']);
  context.expect('messages, and the map when they come', seen.slice(0, 3), [
    `0 to ${lastAddress}: 1048576 + 65536`,
    `0 to ${lastAddress}: 1048576 + 65536, 2097152 + 65536`,
    `0 to ${lastAddress}: 2097152 + 65536`,
  ]);
  device.answer = (request) => (request.type === 'update-iotlb' ? 'failed' : 'ok');
  const refused = await session.changeMaps('maps', [{ kind: 'map', iova: 1 << 20 }]);
  context.expect('a map that the device refuses', refused, ['refused']);
  context.expect('is none', mapped(device), '');
}

export const memoryCases: readonly ConformanceCase[] = [
  { name: 'IOTLB', run: iotlb },
  { name: 'IOTLB_GET_FD2, API 0', run: getFd2(0) },
  { name: 'IOTLB_GET_FD2, API 1', run: getFd2(1) },
  { name: 'user memory', run: userMemory },
  { name: 'UPDATE_IOTLB', run: updateIotlb },
];
