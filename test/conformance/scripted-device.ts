/** A device without a virtio device behind it: answers messages as a script says, and looks at its one queue by hand. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeFd, createEventFd, readFd, viewBytes } from '../../src/native/fd.js';
import type { FdWatcher } from '../../src/native/fd-watcher.js';
import { mapFile, unmap } from '../../src/native/memory.js';
import {
  decodeIotlbEntry,
  decodeQueueInfo,
  decodeRequest,
  encodeDeviceConfig,
  encodeDeviceName,
  encodeIotlbEntry,
  encodeQueueConfig,
  encodeQueueEventFd,
  encodeQueueInfo,
  encodeResponse,
  encodeU64,
  type VduseDeviceConfig,
  VduseIoctl,
  type VduseRequest,
  vduseMessageBytes,
} from '../../src/native/vduse-abi.js';
import type { VduseKernel } from '../../src/native/vduse-kernel.js';
import type { CaseContext } from './conformance-case.js';

export const VERSION_1 = 1n << 32n;
export const ACCESS_PLATFORM = 1n << 33n;
const lastAddress = 0xffff_ffff_ffff_ffffn;

/** A disk without sectors: Linux looks for no partitions on it, so nobody has to serve any request. */
export function deviceConfig(name: string, changes: Partial<VduseDeviceConfig> = {}): VduseDeviceConfig {
  return {
    name,
    vendorId: 0,
    deviceId: 2,
    features: VERSION_1 | ACCESS_PLATFORM,
    queueCount: 2,
    queueAlignment: 4096,
    groupCount: 0,
    addressSpaceCount: 0,
    config: new Uint8Array(60),
    ...changes,
  };
}

export function openControl(context: CaseContext, api: number): number {
  const { kernel } = context.session();
  const fd = kernel.openControl();
  context.after(() => kernel.close(fd));
  assert.equal(kernel.ioctl(fd, VduseIoctl.SET_API_VERSION, encodeU64(BigInt(api))), 0, 'SET_API_VERSION');
  return fd;
}

export type Answer = 'ok' | 'failed' | 'none';

interface Region {
  readonly start: number;
  readonly length: number;
  readonly hostAddress: number;
}

export interface ScriptedOptions {
  readonly api?: number;
  readonly config?: Partial<VduseDeviceConfig>;
  /** False: VQ_SETUP is left to the case. */
  readonly setup?: boolean;
}

export class ScriptedDevice {
  readonly name: string;
  readonly kernel: VduseKernel;
  readonly control: number;
  fd = -1;
  /** Every message that was read. */
  readonly requests: VduseRequest[] = [];
  answer: (request: VduseRequest) => Answer = () => 'ok';
  availIndex = 0;
  /** What was registered in the bounce region's place: its own pages can't be mapped then. */
  userMemory = 0;
  #watcher: FdWatcher | undefined;
  #regions: Region[] = [];
  #destroyed = false;

  /** Makes and opens a device; the case's end takes it away, whatever state it is in. */
  static create(context: CaseContext, name: string, options: ScriptedOptions = {}): ScriptedDevice {
    const session = context.session();
    const api = options.api ?? 0;
    const control = openControl(context, api);
    const device = new ScriptedDevice(name, session.kernel, control);
    const groups = { groupCount: api, addressSpaceCount: api };
    const config = deviceConfig(name, { ...groups, ...options.config });
    assert.equal(
      session.kernel.ioctl(control, VduseIoctl.CREATE_DEV, encodeDeviceConfig(config)),
      0,
      'CREATE_DEV',
    );
    context.after(() => device.destroy());
    session.prepare(name);
    device.open();
    if (options.setup !== false) {
      for (let index = 0; index < config.queueCount; index++) {
        const argument = encodeQueueConfig({ index, maxSize: 64, group: 0 });
        assert.equal(device.ioctl(VduseIoctl.VQ_SETUP, argument), 0, 'VQ_SETUP');
      }
    }
    return device;
  }

  private constructor(name: string, kernel: VduseKernel, control: number) {
    this.name = name;
    this.kernel = kernel;
    this.control = control;
  }

  open(): void {
    this.fd = this.kernel.openDevice(this.name);
  }

  close(): void {
    this.unwatch();
    this.unmap();
    if (this.fd >= 0) {
      this.kernel.close(this.fd);
      this.fd = -1;
    }
  }

  /** Answers messages as they come. */
  watch(): void {
    this.#watcher = this.kernel.watch(this.fd, () => {
      for (let request = this.read(); request !== undefined; request = this.read()) {
        this.respond(request, this.answer(request));
      }
    });
  }

  unwatch(): void {
    this.#watcher?.close();
    this.#watcher = undefined;
  }

  read(): VduseRequest | undefined {
    const bytes = new Uint8Array(new ArrayBuffer(vduseMessageBytes));
    if (this.kernel.read(this.fd, bytes) !== vduseMessageBytes) {
      return undefined;
    }
    const request = decodeRequest(bytes);
    this.requests.push(request);
    return request;
  }

  respond(request: VduseRequest, answer: Answer): number {
    if (answer === 'none') {
      return 0;
    }
    const state =
      request.type === 'get-vq-state'
        ? { queueState: { index: request.index, availIndex: this.availIndex } }
        : {};
    return this.kernel.write(this.fd, encodeResponse({ id: request.id, ok: answer === 'ok', ...state }));
  }

  /** The statuses that the driver has set, in hexadecimal. */
  statuses(): string {
    return this.requests
      .map((request) => (request.type === 'set-status' ? request.status.toString(16) : request.type))
      .join(' ');
  }

  async nextRequest(): Promise<VduseRequest> {
    for (let n = 0; n < 500; n++) {
      const request = this.read();
      if (request !== undefined) {
        return request;
      }
      await sleep(10);
    }
    throw new Error('no message came');
  }

  ioctl(request: number, argument: Uint8Array | null): number {
    return this.kernel.ioctl(this.fd, request, argument);
  }

  queueInfo(index: number) {
    const argument = encodeQueueInfo(index);
    assert.equal(this.ioctl(VduseIoctl.VQ_GET_INFO, argument), 0, 'VQ_GET_INFO');
    return decodeQueueInfo(argument);
  }

  setKickFd(index: number, fd: number): number {
    return this.ioctl(VduseIoctl.VQ_SETUP_KICKFD, encodeQueueEventFd(index, fd));
  }

  /** The first map of a range, or the errno. Its descriptor is closed again. */
  iotlb(start: bigint, last: bigint): ReturnType<typeof decodeIotlbEntry> | number {
    const argument = encodeIotlbEntry({ start, last });
    const fd = this.ioctl(VduseIoctl.IOTLB_GET_FD, argument);
    if (fd < 0) {
      return fd;
    }
    closeFd(fd);
    return decodeIotlbEntry(argument);
  }

  /** The maps as the driver has them now. */
  map(): readonly Region[] {
    this.unmap();
    for (let start = 0n; ; ) {
      const argument = encodeIotlbEntry({ start, last: lastAddress });
      const fd = this.ioctl(VduseIoctl.IOTLB_GET_FD, argument);
      if (fd < 0) {
        return this.#regions;
      }
      const entry = decodeIotlbEntry(argument);
      const length = Number(entry.last - entry.start) + 1;
      const hostAddress = mapFile({ fd, length, offset: entry.offset, readable: true, writable: true });
      closeFd(fd);
      this.#regions.push({ start: Number(entry.start), length, hostAddress });
      start = entry.last + 1n;
    }
  }

  unmap(): void {
    for (const { hostAddress, length } of this.#regions) {
      unmap(hostAddress, length);
    }
    this.#regions = [];
  }

  bytesAt(address: number, length: number): Uint8Array {
    const region = this.#regions.find(
      ({ start, length: all }) => address >= start && address + length <= start + all,
    );
    assert(region !== undefined, `${length} bytes at ${address} are not mapped`);
    const hostAddress = region.start === 0 && this.userMemory !== 0 ? this.userMemory : region.hostAddress;
    return viewBytes(hostAddress + address - region.start, length);
  }

  #dataAt(address: number, length: number): DataView {
    const bytes = this.bytesAt(address, length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** Waits for a chain in the available ring of queue 0, beyond `seen` chains, whatever kicks say. */
  async available(seen = 0): Promise<void> {
    const { driverAddress } = this.queueInfo(0);
    for (let n = 0; n < 500; n++) {
      this.map();
      if (this.#dataAt(driverAddress, 4).getUint16(2, true) !== seen) {
        // The kick follows.
        await sleep(50);
        return;
      }
      await sleep(10);
    }
    throw new Error('the driver made nothing available');
  }

  /** Serves the one chain that the available ring has at `at`: GET_ID. Returns the chain's lengths. */
  serveId(at: number, id: string): number[] {
    const { size, descriptorAddress, driverAddress, deviceAddress } = this.queueInfo(0);
    this.map();
    const head = this.#dataAt(driverAddress, 4 + 2 * size).getUint16(4 + 2 * (at % size), true);
    const lengths: number[] = [];
    const writable: Uint8Array[] = [];
    for (let index = head, more = true; more && lengths.length < size; ) {
      const descriptor = this.#dataAt(descriptorAddress + 16 * index, 16);
      const flags = descriptor.getUint16(12, true);
      const length = descriptor.getUint32(8, true);
      lengths.push(length);
      if ((flags & 2) !== 0) {
        writable.push(this.bytesAt(Number(descriptor.getBigUint64(0, true)), length));
      }
      index = descriptor.getUint16(14, true);
      more = (flags & 1) !== 0;
    }
    assert.equal(writable.length, 2, 'the serial number and the status');
    writable[0].fill(0);
    new TextEncoder().encodeInto(id, writable[0]);
    writable[1][0] = 0;
    const used = this.#dataAt(deviceAddress, 4 + 8 * size);
    used.setUint32(4 + 8 * (at % size), head, true);
    used.setUint32(8 + 8 * (at % size), 21, true);
    used.setUint16(2, at + 1, true);
    return lengths;
  }

  /** Removes the device from wherever it is, and answers what that brings. */
  async destroy(): Promise<void> {
    if (this.#destroyed) {
      return;
    }
    this.#destroyed = true;
    if (this.fd < 0) {
      this.open();
    }
    this.answer = () => 'ok';
    if (this.#watcher === undefined) {
      this.watch();
    }
    if (this.kernel.isOnBus(this.name)) {
      await this.kernel.removeFromBus(this.name);
    }
    this.close();
    this.kernel.ioctl(this.control, VduseIoctl.DESTROY_DEV, encodeDeviceName(this.name));
  }
}

/** An eventfd for the time of a case. */
export function eventFd(context: CaseContext): number {
  const fd = createEventFd();
  context.after(() => closeFd(fd));
  return fd;
}

/** Whether an eventfd was signalled since the last look. */
export function wasSignalled(fd: number): boolean {
  return readFd(fd, new Uint8Array(new ArrayBuffer(8))) === 8;
}
