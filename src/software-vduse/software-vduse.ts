/**
 * VDUSE in software: plays Linux's module behind the seam that the VDUSE transport uses, with the kernel ABI's
 * bytes and error numbers, so that the transport and the devices can't tell the difference. Also the vDPA bus:
 * a bus driver gets each device that is added.
 */
import { type ErrorCode, VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { Errno } from '../native/errno.js';
import { closeFd, createEventFd } from '../native/fd.js';
import { type FdWatcher, watchReadable } from '../native/fd-watcher.js';
import { systemCallError } from '../native/ffi.js';
import { pageSize } from '../native/memory.js';
import type { NotifierSpec } from '../native/notifier.js';
import { VduseIoctl, vduseApiVersionMax, vduseDeviceDirectory } from '../native/vduse-abi.js';
import {
  type DeviceConfigQuestion,
  readDeviceConfig,
  readDeviceName,
  readU64,
  writeU64,
} from '../native/vduse-abi-driver.js';
import type { VduseKernel } from '../native/vduse-kernel.js';
import { deviceIoctl } from './device-ioctls.js';
import { bounceBytesDefault } from './iova-domain.js';
import { SoftwareDevice } from './software-device.js';
import type { VduseTrace } from './trace.js';
import type { VdpaDevice } from './vdpa-device.js';

/** A driver of the vDPA bus. `probe` takes the device into use, `remove` ends that. */
export interface VdpaBusDriver {
  probe(device: VdpaDevice): Promise<void>;
  remove(device: VdpaDevice): Promise<void>;
}

export interface SoftwareVduseOptions {
  /** The newest API version that it speaks; 1 when absent. */
  readonly apiVersion?: 0 | 1;
  /** How long a message may wait for its answer before the device is broken. 30 s when absent, as in Linux. */
  readonly messageTimeoutMs?: number;
  /** Bytes of each device's bounce region, in pages; 64 MiB when absent. */
  readonly bounceBytes?: number;
  /** Takes the devices that are added to the bus. Absent: they stay without a driver. */
  readonly busDriver?: VdpaBusDriver;
  /** Told of every control message and every change of an IOTLB. */
  readonly trace?: VduseTrace;
}

/** Virtio 5: what Linux lets a VDUSE device be. */
const allowedDeviceIds = [1, 2, 26];
const networkDevice = 1;
const blockDevice = 2;
const accessPlatform = 1n << 33n;
const version1 = 1n << 32n;
const blkConfigWce = 1n << 11n;
const netControlQueue = 1n << 17n;
const queueCountMax = 0xffff;
const groupCountMax = 0xffff;

const controlRequests: readonly number[] = [
  VduseIoctl.GET_API_VERSION,
  VduseIoctl.SET_API_VERSION,
  VduseIoctl.CREATE_DEV,
  VduseIoctl.DESTROY_DEV,
];

type OpenFile =
  | { readonly kind: 'control'; apiVersion: number }
  | { readonly kind: 'device'; readonly device: SoftwareDevice };

function areFeaturesValid(question: DeviceConfigQuestion): boolean {
  const { features, deviceId } = question;
  // The configuration space is the device's to write, so what lets a driver write it is refused.
  const refused = deviceId === blockDevice ? blkConfigWce : deviceId === networkDevice ? netControlQueue : 0n;
  const needed = deviceId === networkDevice ? accessPlatform | version1 : accessPlatform;
  return (features & needed) === needed && (features & refused) === 0n;
}

/** Virtio 2.7: the used ring is aligned to 4 at least. Linux 6.12 takes everything up to a page. */
function isAlignmentValid(alignment: number): boolean {
  return alignment >= 4 && alignment <= pageSize && (alignment & (alignment - 1)) === 0;
}

function isConfigValid(question: DeviceConfigQuestion, apiVersion: number): boolean {
  const { groupCount, addressSpaceCount } = question;
  const inRange = (count: number): boolean => count >= 1 && count <= groupCountMax;
  const groupsFit =
    apiVersion === 0
      ? groupCount === 0 && addressSpaceCount === 0
      : inRange(groupCount) && inRange(addressSpaceCount);
  return (
    question.reservedIsZero &&
    groupsFit &&
    isAlignmentValid(question.queueAlignment) &&
    question.configBytes <= limits.configSpaceBytesMax &&
    question.queueCount <= queueCountMax &&
    question.name !== '' &&
    allowedDeviceIds.includes(question.deviceId) &&
    areFeaturesValid(question)
  );
}

/** The same codes as Linux's vDPA bus gets (native/vdpa.ts): callers tell them apart by those. */
function busError(code: ErrorCode, change: 'add' | 'del', errno: number, name: string): VduseError {
  const cause = systemCallError(`vdpa dev ${change}`, errno, name);
  return new VduseError(code, cause.message, { cause });
}

export class SoftwareVduse implements VduseKernel {
  readonly #apiVersion: number;
  readonly #messageTimeoutMs: number;
  readonly #bounceBytes: number;
  readonly #busDriver: VdpaBusDriver | undefined;
  readonly #trace: VduseTrace | undefined;
  readonly #devices = new Map<string, SoftwareDevice>();
  readonly #files = new Map<number, OpenFile>();
  #lastBusChange: Promise<void> = Promise.resolve();

  constructor(options: SoftwareVduseOptions = {}) {
    this.#apiVersion = options.apiVersion ?? vduseApiVersionMax;
    this.#messageTimeoutMs = options.messageTimeoutMs ?? 30_000;
    this.#bounceBytes = options.bounceBytes ?? bounceBytesDefault;
    this.#busDriver = options.busDriver;
    this.#trace = options.trace;
  }

  /** The devices that exist. */
  get deviceNames(): string[] {
    return [...this.#devices.keys()];
  }

  /** How long a device's messages may wait from now on: Linux's /sys/class/vduse/NAME/msg_timeout. 0: for ever. */
  setMessageTimeoutMs(name: string, timeoutMs: number): void {
    const device = this.#devices.get(name);
    if (device === undefined) {
      throw new VduseError('NOT_FOUND', `there is no VDUSE device named '${name}'`);
    }
    device.messages.timeoutMs = timeoutMs;
  }

  // VduseKernel

  openControl(): number {
    return this.#open({ kind: 'control', apiVersion: this.#apiVersion });
  }

  openDevice(name: string): number {
    const device = this.#devices.get(name);
    const path = `${vduseDeviceDirectory}/${name}`;
    if (device === undefined) {
      throw systemCallError('open', Errno.ENOENT, path);
    }
    if (device.connected) {
      throw systemCallError('open', Errno.EBUSY, path);
    }
    device.connected = true;
    return this.#open({ kind: 'device', device });
  }

  close(fd: number): void {
    const file = this.#files.get(fd);
    this.#files.delete(fd);
    closeFd(fd);
    if (file?.kind === 'device') {
      file.device.disconnect();
    }
  }

  ioctl(fd: number, request: number, argument: Uint8Array | null): number {
    const file = this.#files.get(fd);
    if (file === undefined) {
      return -Errno.EBADF;
    }
    return file.kind === 'device'
      ? deviceIoctl(file.device, request, argument)
      : this.#controlIoctl(file, request, argument);
  }

  read(fd: number, buffer: Uint8Array): number {
    const file = this.#files.get(fd);
    if (file?.kind !== 'device') {
      return file === undefined ? -Errno.EBADF : -Errno.EINVAL;
    }
    const result = file.device.messages.read(buffer);
    file.device.updateReadiness();
    return result;
  }

  write(fd: number, buffer: Uint8Array): number {
    const file = this.#files.get(fd);
    if (file?.kind !== 'device') {
      return file === undefined ? -Errno.EBADF : -Errno.EINVAL;
    }
    return file.device.messages.write(buffer);
  }

  watch(fd: number, onReadable: () => void): FdWatcher {
    return watchReadable(this.#device(fd)?.readyFd ?? fd, onReadable);
  }

  notifier(fd: number, queue: number): NotifierSpec {
    const callFd = this.#device(fd)?.queues[queue]?.callFd ?? -1;
    return callFd < 0 ? { kind: 'none' } : { kind: 'eventfd', fd: callFd };
  }

  messageTimeoutMs(): number {
    return this.#messageTimeoutMs;
  }

  addToBus(name: string): Promise<void> {
    return this.#onBus(() => this.#addToBus(name));
  }

  removeFromBus(name: string): Promise<void> {
    return this.#onBus(() => this.#removeFromBus(name));
  }

  setIrqAffinity(): void {
    throw new VduseError('NOT_SUPPORTED', 'the software driver has no interrupts to place');
  }

  isOnBus(name: string): boolean {
    return this.#devices.get(name)?.onBus === true;
  }

  /** One change of the bus after the other, as Linux's lock has it: nothing is removed while it is probed. */
  #onBus(change: () => Promise<void>): Promise<void> {
    const result = this.#lastBusChange.then(change);
    this.#lastBusChange = result.catch(() => {});
    return result;
  }

  async #addToBus(name: string): Promise<void> {
    const device = this.#devices.get(name);
    if (device?.isReady !== true) {
      throw busError('ATTACH_FAILED', 'add', Errno.EINVAL, name);
    }
    if (device.onBus) {
      throw busError('ALREADY_EXISTS', 'add', Errno.EEXIST, name);
    }
    device.onBus = true;
    device.openDomain();
    try {
      await this.#busDriver?.probe(device);
    } catch (error) {
      device.onBus = false;
      throw new VduseError('ATTACH_FAILED', `the driver of the bus did not take '${name}'`, { cause: error });
    }
  }

  async #removeFromBus(name: string): Promise<void> {
    const device = this.#devices.get(name);
    if (device?.onBus !== true) {
      throw busError('NOT_FOUND', 'del', Errno.ENODEV, name);
    }
    try {
      await this.#busDriver?.remove(device);
    } finally {
      device.onBus = false;
    }
  }

  #open(file: OpenFile): number {
    // A real descriptor, so that its number is nobody else's.
    const fd = createEventFd();
    this.#files.set(fd, file);
    return fd;
  }

  #device(fd: number): SoftwareDevice | undefined {
    const file = this.#files.get(fd);
    return file?.kind === 'device' ? file.device : undefined;
  }

  #controlIoctl(
    control: Extract<OpenFile, { kind: 'control' }>,
    request: number,
    argument: Uint8Array | null,
  ): number {
    if (!controlRequests.includes(request)) {
      return -Errno.EINVAL;
    }
    if (argument === null || argument.byteLength < ((request >>> 16) & 0x3fff)) {
      return -Errno.EFAULT;
    }
    switch (request) {
      case VduseIoctl.GET_API_VERSION:
        writeU64(argument, 0, BigInt(control.apiVersion));
        return 0;
      case VduseIoctl.SET_API_VERSION: {
        const version = readU64(argument, 0);
        if (version > BigInt(this.#apiVersion)) {
          return -Errno.EINVAL;
        }
        control.apiVersion = Number(version);
        return 0;
      }
      case VduseIoctl.CREATE_DEV:
        return this.#create(argument, control.apiVersion);
      case VduseIoctl.DESTROY_DEV:
        return this.#destroy(readDeviceName(argument));
      default:
        return -Errno.EINVAL;
    }
  }

  #create(argument: Uint8Array, apiVersion: number): number {
    const question = readDeviceConfig(argument);
    if (question === undefined) {
      return -Errno.EFAULT;
    }
    if (!isConfigValid(question, apiVersion)) {
      return -Errno.EINVAL;
    }
    if (question.config.length < question.configBytes) {
      return -Errno.EFAULT;
    }
    if (this.#devices.has(question.name)) {
      return -Errno.EEXIST;
    }
    const device = new SoftwareDevice({
      question,
      apiVersion,
      timeoutMs: this.#messageTimeoutMs,
      bounceBytes: this.#bounceBytes,
      trace: this.#trace,
    });
    this.#devices.set(question.name, device);
    return 0;
  }

  #destroy(name: string): number {
    const device = this.#devices.get(name);
    if (device === undefined) {
      return -Errno.EINVAL;
    }
    if (device.connected || device.onBus) {
      return -Errno.EBUSY;
    }
    this.#devices.delete(name);
    device.destroy();
    return 0;
  }
}
