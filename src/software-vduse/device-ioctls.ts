/** The ioctls of a VDUSE device's node, in the kernel ABI's bytes and with its error numbers. */
import { readlinkSync } from 'node:fs';
import { Errno } from '../native/errno.js';
import { closeFd, duplicateFd } from '../native/fd.js';
import { pageSize, populate } from '../native/memory.js';
import { VduseIoctl } from '../native/vduse-abi.js';
import {
  isIovaInfoReservedZero,
  readI32,
  readQueueConfig,
  readU32,
  readU64,
  readUserMemory,
  writeIotlbEntry,
  writeQueueInfo,
  writeU64,
} from '../native/vduse-abi-driver.js';
import type { IotlbMap } from './iotlb.js';
import type { SoftwareDevice } from './software-device.js';

/** What Linux answers for an ioctl that a file does not have. */
const ENOTTY = 25;
const safeMax = BigInt(Number.MAX_SAFE_INTEGER);

/** Returns the ioctl's result or a negative errno. */
export function deviceIoctl(device: SoftwareDevice, request: number, argument: Uint8Array | null): number {
  if (device.messages.broken) {
    return -Errno.EPERM;
  }
  if (request === VduseIoctl.DEV_INJECT_CONFIG_IRQ) {
    return injectConfigIrq(device);
  }
  const handler = handlers.get(request);
  const isNewer = request === VduseIoctl.IOTLB_GET_FD2 && device.apiVersion < 1;
  if (handler === undefined || isNewer) {
    return -ENOTTY;
  }
  // The size of the argument is part of the request's number (asm-generic/ioctl.h).
  if (argument === null || argument.byteLength < ((request >>> 16) & 0x3fff)) {
    return -Errno.EFAULT;
  }
  return handler(device, argument);
}

type Handler = (device: SoftwareDevice, argument: Uint8Array) => number;

const handlers = new Map<number, Handler>([
  [VduseIoctl.IOTLB_GET_FD, iotlbGetFd],
  [VduseIoctl.IOTLB_GET_FD2, iotlbGetFd2],
  [VduseIoctl.IOTLB_GET_INFO, iotlbGetInfo],
  [VduseIoctl.DEV_GET_FEATURES, getFeatures],
  [VduseIoctl.DEV_SET_CONFIG, setConfig],
  [VduseIoctl.VQ_SETUP, setupQueue],
  [VduseIoctl.VQ_GET_INFO, getQueueInfo],
  [VduseIoctl.VQ_SETUP_KICKFD, setupKickFd],
  [VduseIoctl.VQ_INJECT_IRQ, injectQueueIrq],
  [VduseIoctl.IOTLB_REG_UMEM, registerUserMemory],
  [VduseIoctl.IOTLB_DEREG_UMEM, deregisterUserMemory],
]);

/** The first map that overlaps start to last, inclusive; no map lies beyond what a double counts. */
function findMap(device: SoftwareDevice, start: bigint, last: bigint): IotlbMap | undefined {
  if (start > last || start > safeMax) {
    return undefined;
  }
  return device.domain?.iotlb.find(Number(start), Number(last > safeMax ? safeMax : last));
}

function iotlbGetFd(device: SoftwareDevice, argument: Uint8Array): number {
  const map = findMap(device, readU64(argument, 8), readU64(argument, 16));
  if (map === undefined) {
    return -Errno.EINVAL;
  }
  writeIotlbEntry(argument, map);
  return duplicateFd(map.fd);
}

function iotlbGetFd2(device: SoftwareDevice, argument: Uint8Array): number {
  const reservedIsZero = argument.subarray(36, 80).every((byte) => byte === 0);
  return readU32(argument, 32) === 0 && reservedIsZero ? iotlbGetFd(device, argument) : -Errno.EINVAL;
}

function iotlbGetInfo(device: SoftwareDevice, argument: Uint8Array): number {
  const map = findMap(device, readU64(argument, 0), readU64(argument, 8));
  if (map === undefined || !isIovaInfoReservedZero(argument)) {
    return -Errno.EINVAL;
  }
  writeU64(argument, 0, BigInt(map.start));
  writeU64(argument, 8, BigInt(map.start + map.length - 1));
  writeU64(argument, 16, device.domain?.isBounceRegion(map) === true ? 1n : 0n);
  return 0;
}

function getFeatures(device: SoftwareDevice, argument: Uint8Array): number {
  writeU64(argument, 0, device.driverFeatures);
  return 0;
}

function setConfig(device: SoftwareDevice, argument: Uint8Array): number {
  const offset = readU32(argument, 0);
  const length = readU32(argument, 4);
  if (offset > device.config.length || length === 0 || length > device.config.length - offset) {
    return -Errno.EINVAL;
  }
  if (argument.byteLength < 8 + length) {
    return -Errno.EFAULT;
  }
  device.config.set(argument.subarray(8, 8 + length), offset);
  return 0;
}

function injectConfigIrq(device: SoftwareDevice): number {
  if (!device.isDriverOk) {
    return -Errno.EINVAL;
  }
  device.interruptConfig();
  return 0;
}

function setupQueue(device: SoftwareDevice, argument: Uint8Array): number {
  const { index, maxSize, group, reservedIsZero } = readQueueConfig(argument);
  const groups = device.apiVersion < 1 ? 1 : device.groupCount;
  const tooLate = device.apiVersion >= 1 && device.isDriverOk;
  if (index >= device.queueCount || group >= groups || tooLate || !reservedIsZero) {
    return -Errno.EINVAL;
  }
  device.queues[index].sizeMax = maxSize;
  device.queues[index].group = group;
  return 0;
}

function getQueueInfo(device: SoftwareDevice, argument: Uint8Array): number {
  const index = readU32(argument, 0);
  if (index >= device.queueCount) {
    return -Errno.EINVAL;
  }
  writeQueueInfo(argument, { index, ...pickInfo(device, index) });
  return 0;
}

function pickInfo(device: SoftwareDevice, index: number) {
  const { size, descriptorAddress, driverAddress, deviceAddress, availIndex, ready } = device.queues[index];
  return { size, descriptorAddress, driverAddress, deviceAddress, availIndex, ready };
}

function setupKickFd(device: SoftwareDevice, argument: Uint8Array): number {
  const index = readU32(argument, 0);
  const fd = readI32(argument, 4);
  if (index >= device.queueCount) {
    return -Errno.EINVAL;
  }
  if (fd < -1) {
    return 0;
  }
  let own = -1;
  if (fd >= 0) {
    try {
      own = duplicateFd(fd);
    } catch {
      return -Errno.EBADF;
    }
    if (readlinkSync(`/proc/self/fd/${own}`) !== 'anon_inode:[eventfd]') {
      closeFd(own);
      return -Errno.EINVAL;
    }
  }
  device.queues[index].setKickFd(own);
  return 0;
}

function injectQueueIrq(device: SoftwareDevice, argument: Uint8Array): number {
  const index = readU32(argument, 0);
  if (index >= device.queueCount || !device.isDriverOk) {
    return -Errno.EINVAL;
  }
  device.interruptQueue(index);
  return 0;
}

function registerUserMemory(device: SoftwareDevice, argument: Uint8Array): number {
  const { address, iova, size, reservedIsZero } = readUserMemory(argument);
  const { domain } = device;
  const fits = domain?.bounceMapped === true && size === BigInt(domain.bounceBytes) && iova === 0n;
  if (!reservedIsZero || !fits || address % pageSize !== 0) {
    return -Errno.EINVAL;
  }
  if (device.userMemory !== 0) {
    return -Errno.EEXIST;
  }
  // Linux pins the pages: none is EFAULT, some is ENOMEM. Touching what is not there would end the process.
  if (!populate(address, pageSize)) {
    return -Errno.EFAULT;
  }
  if (!populate(address, domain.bounceBytes)) {
    return -Errno.ENOMEM;
  }
  domain.replaceBounce(address);
  device.userMemory = address;
  return 0;
}

function deregisterUserMemory(device: SoftwareDevice, argument: Uint8Array): number {
  const { iova, size, reservedIsZero } = readUserMemory(argument);
  if (!reservedIsZero) {
    return -Errno.EINVAL;
  }
  if (device.userMemory === 0) {
    return -Errno.ENOENT;
  }
  if (iova !== 0n || size !== BigInt(device.domain?.bounceBytes ?? 0)) {
    return -Errno.EINVAL;
  }
  device.releaseUserMemory();
  return 0;
}
