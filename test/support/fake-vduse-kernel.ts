/**
 * Just enough of a VDUSE driver to play with the transport: one device, its messages, a memory map that the test
 * fills, and a fault wherever the test wants one. Descriptors are real, so that what stays open is seen.
 */
import assert from 'node:assert/strict';
import { Errno } from '../../src/native/errno.js';
import { closeFd, createEventFd, duplicateFd, signalEventFd } from '../../src/native/fd.js';
import type { FdWatcher } from '../../src/native/fd-watcher.js';
import type { NotifierSpec } from '../../src/native/notifier.js';
import type { VduseKernel } from '../../src/native/vduse-kernel.js';
import {
  type CreatedDevice,
  cString,
  decodeCreatedDevice,
  type FakeRegion,
  type FakeResponse,
  ioctlNames,
  systemError,
} from './fake-vduse-abi.js';
import type { FrontEnd } from './front-end.js';

interface Message {
  readonly id: number;
  readonly bytes: Uint8Array;
  readonly resolve: (response: FakeResponse) => void;
}

export class FakeVduse implements VduseKernel {
  /** Every call, in order. */
  readonly calls: string[] = [];
  /** Called before each call; an errno makes it fail. */
  fault: (call: string, nth: number) => number | undefined = () => undefined;
  apiVersion = 1;
  /** Undefined while there is none. */
  created: CreatedDevice | undefined;
  driverFeatures = 0n;
  regions: FakeRegion[] = [];
  timeoutMs = 1000;
  /** What the bus driver does when the device is put on the bus or taken off. */
  probe: () => Promise<void> = () => Promise.resolve();
  remove: () => Promise<void> = () => Promise.resolve();
  onBus = false;
  readonly queueSizes = new Map<number, number>();
  configIrqs = 0;
  #frontEnd: FrontEnd | undefined;
  #open: number | undefined;
  readonly #controls = new Set<number>();
  readonly #kickFds = new Map<number, number>();
  #watcher: (() => void) | undefined;
  readonly #queued: Message[] = [];
  readonly #unanswered = new Map<number, Message>();
  #nextId = 1;

  setIrqAffinity(name: string, queue: number, cpus: readonly number[]): void {
    this.calls.push(`setIrqAffinity ${name} ${queue} ${cpus.join(',')}`);
  }

  /** The driver's rings and memory: what VQ_GET_INFO tells and kicks come from. Without memory the map is empty. */
  connect(frontEnd: FrontEnd, memory: 'all' | 'rings' | 'none' = 'all'): void {
    this.#frontEnd = frontEnd;
    this.driverFeatures = frontEnd.features | (1n << 33n);
    this.regions = this.regionsOf(frontEnd).slice(0, { all: 3, rings: 1, none: 0 }[memory]);
    for (const queue of frontEnd.queues) {
      queue.kick = () => {
        const fd = this.#kickFds.get(queue.index);
        if (fd !== undefined) {
          signalEventFd(fd);
        }
      };
    }
  }

  /** No driver has made queues ready. */
  forgetDriver(): void {
    this.#frontEnd = undefined;
  }

  regionsOf({ memory }: FrontEnd): FakeRegion[] {
    return memory.regions.map((region) => ({
      start: BigInt(region.start),
      last: BigInt(region.start + region.length - 1),
      fd: memory.file ?? -1,
      offset: memory.fileOffset(region),
      permission: 3,
    }));
  }

  /** What the transport holds and should have given back. */
  get held(): string[] {
    return [
      ...(this.created === undefined ? [] : ['the device']),
      ...(this.#open === undefined ? [] : ['its descriptor']),
      ...[...this.#controls].map(() => 'a control descriptor'),
      ...[...this.#kickFds.keys()].map((index) => `kick eventfd ${index}`),
      ...(this.#watcher === undefined ? [] : ['a watch']),
    ];
  }

  /** Messages that were read and not answered. */
  get unanswered(): number {
    return this.#unanswered.size;
  }

  // The driver's messages

  setStatus(status: number): Promise<FakeResponse> {
    return this.send(1, (data) => data.setUint8(24, status));
  }

  updateIotlb(start: bigint, last: bigint): Promise<FakeResponse> {
    return this.send(2, (data) => {
      data.setBigUint64(24, start, true);
      data.setBigUint64(32, last, true);
    });
  }

  queueState(index: number): Promise<FakeResponse> {
    return this.send(0, (data) => data.setUint32(24, index, true));
  }

  /** Sends a message; the answer comes when the transport writes it. */
  send(type: number, fill: (data: DataView) => void): Promise<FakeResponse> {
    const bytes = new Uint8Array(152);
    const data = new DataView(bytes.buffer);
    const id = this.#nextId++;
    data.setUint32(0, type, true);
    data.setUint32(4, id, true);
    fill(data);
    return new Promise((resolve) => {
      this.#queued.push({ id, bytes, resolve });
      this.#tellReadable();
    });
  }

  /** The steps of Linux's driver up to DRIVER_OK. */
  async bringUp(): Promise<FakeResponse> {
    for (const status of [0, 1, 3, 0xb]) {
      assert.ok((await this.setStatus(status)).ok, `status ${status}`);
    }
    return this.setStatus(0xf);
  }

  // VduseKernel

  openControl(): number {
    this.#throwing('openControl');
    const fd = createEventFd();
    this.#controls.add(fd);
    return fd;
  }

  openDevice(name: string): number {
    this.#throwing('openDevice');
    if (this.created?.name !== name) {
      throw systemError('open', Errno.ENOENT);
    }
    if (this.#open !== undefined) {
      throw systemError('open', Errno.EBUSY);
    }
    this.#open = createEventFd();
    return this.#open;
  }

  close(fd: number): void {
    this.calls.push('close');
    if (fd === this.#open) {
      this.#open = undefined;
    } else {
      assert.ok(this.#controls.delete(fd), `close(${fd}) of what is not open`);
    }
    closeFd(fd);
  }

  ioctl(fd: number, request: number, argument: Uint8Array | null): number {
    const name = ioctlNames.get(request);
    assert.ok(name !== undefined, `ioctl 0x${request.toString(16)} is none that a driver knows`);
    assert.ok(fd === this.#open || this.#controls.has(fd), `ioctl ${name} on ${fd}, which is not open`);
    const errno = this.#record(name);
    if (errno !== undefined) {
      return -errno;
    }
    const data =
      argument === null ? undefined : new DataView(argument.buffer, argument.byteOffset, argument.byteLength);
    return fd === this.#open ? this.#deviceIoctl(name, data) : this.#controlIoctl(name, data);
  }

  read(_fd: number, buffer: Uint8Array): number {
    const errno = this.#record('read');
    if (errno !== undefined) {
      return -errno;
    }
    const message = this.#queued.shift();
    if (message === undefined) {
      return -Errno.EAGAIN;
    }
    buffer.set(message.bytes);
    this.#unanswered.set(message.id, message);
    return message.bytes.length;
  }

  write(_fd: number, buffer: Uint8Array): number {
    const errno = this.#record('write');
    if (errno !== undefined) {
      return -errno;
    }
    assert.equal(buffer.length, 152);
    const data = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
    const message = this.#unanswered.get(data.getUint32(0, true));
    if (message === undefined) {
      return -Errno.ENOENT;
    }
    this.#unanswered.delete(message.id);
    const index = data.getUint32(24, true);
    message.resolve({ ok: data.getUint32(4, true) === 0, index, availIndex: data.getUint16(28, true) });
    return 152;
  }

  watch(fd: number, onReadable: () => void): FdWatcher {
    this.#throwing('watch');
    assert.equal(fd, this.#open);
    assert.equal(this.#watcher, undefined);
    this.#watcher = onReadable;
    this.#tellReadable();
    return {
      close: () => {
        this.#watcher = undefined;
      },
    };
  }

  notifier(_fd: number, queue: number): NotifierSpec {
    const fd = this.#frontEnd?.queues[queue].callFd;
    return fd === undefined ? { kind: 'none' } : { kind: 'eventfd', fd };
  }

  messageTimeoutMs(): number {
    return this.timeoutMs;
  }

  async addToBus(): Promise<void> {
    this.#throwing('addToBus');
    this.onBus = true;
    await this.probe();
  }

  async removeFromBus(): Promise<void> {
    this.#throwing('removeFromBus');
    await this.remove();
    this.onBus = false;
  }

  isOnBus(): boolean {
    return this.onBus;
  }

  #tellReadable(): void {
    setImmediate(() => {
      if (this.#queued.length > 0) {
        this.#watcher?.();
      }
    });
  }

  #record(call: string): number | undefined {
    const nth = this.calls.filter((one) => one === call).length;
    this.calls.push(call);
    return this.fault(call, nth);
  }

  #throwing(call: string): void {
    const errno = this.#record(call);
    if (errno !== undefined) {
      throw systemError(call, errno);
    }
  }

  #controlIoctl(name: string, data: DataView | undefined): number {
    assert.ok(data !== undefined);
    switch (name) {
      case 'GET_API_VERSION':
        data.setBigUint64(0, BigInt(this.apiVersion), true);
        return 0;
      case 'SET_API_VERSION':
        return data.getBigUint64(0, true) <= BigInt(this.apiVersion) ? 0 : -Errno.EINVAL;
      case 'CREATE_DEV':
        return this.#create(data);
      case 'DESTROY_DEV':
        if (this.created?.name !== cString(data, 256)) {
          return -Errno.EINVAL;
        }
        if (this.#open !== undefined || this.onBus) {
          return -Errno.EBUSY;
        }
        this.created = undefined;
        return 0;
      default:
        return -Errno.EINVAL;
    }
  }

  #create(data: DataView): number {
    if (this.created !== undefined) {
      return -Errno.EEXIST;
    }
    this.created = decodeCreatedDevice(data);
    return 0;
  }

  #deviceIoctl(name: string, data: DataView | undefined): number {
    switch (name) {
      case 'DEV_GET_FEATURES':
        data?.setBigUint64(0, this.driverFeatures, true);
        return 0;
      case 'DEV_SET_CONFIG':
        return 0;
      case 'DEV_INJECT_CONFIG_IRQ':
        this.configIrqs++;
        return 0;
      case 'VQ_SETUP':
        this.queueSizes.set(data?.getUint32(0, true) ?? -1, data?.getUint16(4, true) ?? 0);
        return 0;
      case 'VQ_GET_INFO':
        return data === undefined ? -Errno.EFAULT : this.#queueInfo(data);
      case 'VQ_SETUP_KICKFD':
        return data === undefined ? -Errno.EFAULT : this.#setKickFd(data);
      case 'IOTLB_GET_FD':
      case 'IOTLB_GET_FD2':
        return data === undefined ? -Errno.EFAULT : this.#iotlb(data);
      default:
        return -Errno.EINVAL;
    }
  }

  #queueInfo(data: DataView): number {
    const index = data.getUint32(0, true);
    if (index >= (this.created?.queueCount ?? 0)) {
      return -Errno.EINVAL;
    }
    const queue = this.#frontEnd?.queues[index];
    if (queue !== undefined) {
      data.setUint32(4, queue.size, true);
      data.setBigUint64(8, BigInt(queue.place.descriptorAddress), true);
      data.setBigUint64(16, BigInt(queue.place.driverAddress), true);
      data.setBigUint64(24, BigInt(queue.place.deviceAddress), true);
      data.setUint16(32, 0, true);
    }
    data.setUint8(40, queue === undefined ? 0 : 1);
    return 0;
  }

  #setKickFd(data: DataView): number {
    const index = data.getUint32(0, true);
    const fd = data.getInt32(4, true);
    if (fd === -1) {
      this.#kickFds.delete(index);
    } else {
      this.#kickFds.set(index, fd);
      // A driver that had kicked before makes up for it.
      signalEventFd(fd);
    }
    return 0;
  }

  #iotlb(data: DataView): number {
    const start = data.getBigUint64(8, true);
    const last = data.getBigUint64(16, true);
    const found = this.regions
      .filter((region) => region.start <= last && region.last >= start)
      .sort((a, b) => (a.start < b.start ? -1 : 1))[0];
    if (found === undefined) {
      return -Errno.EINVAL;
    }
    data.setBigUint64(0, BigInt(found.offset), true);
    data.setBigUint64(8, found.start, true);
    data.setBigUint64(16, found.last, true);
    data.setUint8(24, found.permission);
    return duplicateFd(found.fd);
  }
}
