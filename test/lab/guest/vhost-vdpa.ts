/**
 * A vhost-vDPA device as a virtual machine monitor uses it (include/uapi/linux/vhost.h and vhost_types.h): memory
 * of this process is the guest's, announced piece by piece, and the device's rings lie in it.
 */
import { SystemCallError } from '../../../src/base/errors.js';
import { describeErrno } from '../../../src/native/errno.js';
import { closeFd, createEventFd, ioctl, OpenFlag, openFile, writeFd } from '../../../src/native/fd.js';
import { createMemoryFile, mapFile, unmap } from '../../../src/native/memory.js';

const READ = 2;
const WRITE = 1;

function ioc(direction: number, nr: number, size: number): number {
  return ((direction << 30) | (size << 16) | (0xaf << 8) | nr) >>> 0;
}

const Request = {
  GET_FEATURES: ioc(READ, 0x00, 8),
  SET_FEATURES: ioc(WRITE, 0x00, 8),
  SET_OWNER: ioc(0, 0x01, 0),
  SET_VRING_NUM: ioc(WRITE, 0x10, 8),
  SET_VRING_ADDR: ioc(WRITE, 0x11, 40),
  SET_VRING_BASE: ioc(WRITE, 0x12, 8),
  GET_VRING_BASE: ioc(READ | WRITE, 0x12, 8),
  SET_VRING_KICK: ioc(WRITE, 0x20, 8),
  SET_VRING_CALL: ioc(WRITE, 0x21, 8),
  SET_BACKEND_FEATURES: ioc(WRITE, 0x25, 8),
  GET_BACKEND_FEATURES: ioc(READ, 0x26, 8),
  GET_DEVICE_ID: ioc(READ, 0x70, 4),
  GET_STATUS: ioc(READ, 0x71, 1),
  SET_STATUS: ioc(WRITE, 0x72, 1),
  GET_CONFIG: ioc(READ, 0x73, 8),
  SET_VRING_ENABLE: ioc(WRITE, 0x75, 8),
  GET_VRING_NUM: ioc(READ, 0x76, 2),
} as const;

/** VHOST_BACKEND_F_IOTLB_MSG_V2. */
const BACKEND_F_IOTLB_MSG_V2 = 1n << 1n;
/** struct vhost_msg_v2: type, address space, then struct vhost_iotlb_msg in a union of 64 bytes. */
const messageBytes = 72;
const IOTLB_MSG_V2 = 2;
const IotlbType = { UPDATE: 2, INVALIDATE: 3 } as const;
const ACCESS_RW = 3;

export interface VringAddresses {
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
}

/** Memory of the guest: shared pages with a file, for the device's process maps them too. */
export class SharedMemory {
  readonly length: number;
  readonly address: number;
  readonly #fd: number;

  constructor(length: number) {
    this.length = length;
    this.#fd = createMemoryFile('guest', length);
    this.address = mapFile({ fd: this.#fd, length, offset: 0, readable: true, writable: true });
  }

  close(): void {
    unmap(this.address, this.length);
    closeFd(this.#fd);
  }
}

export class VhostVdpaDevice {
  readonly #fd: number;

  constructor(path: string) {
    this.#fd = openFile(path, OpenFlag.O_RDWR);
    this.#call('SET_OWNER', null);
    const backend = this.#u64('GET_BACKEND_FEATURES');
    if ((backend & BACKEND_F_IOTLB_MSG_V2) === 0n) {
      throw new Error(`backend features 0x${backend.toString(16)} without IOTLB_MSG_V2`);
    }
    this.#setU64('SET_BACKEND_FEATURES', BACKEND_F_IOTLB_MSG_V2);
  }

  close(): void {
    closeFd(this.#fd);
  }

  get deviceId(): number {
    const answer = new Uint8Array(new ArrayBuffer(4));
    this.#call('GET_DEVICE_ID', answer);
    return new DataView(answer.buffer).getUint32(0, true);
  }

  get features(): bigint {
    return this.#u64('GET_FEATURES');
  }

  setFeatures(features: bigint): void {
    this.#setU64('SET_FEATURES', features);
  }

  get status(): number {
    const answer = new Uint8Array(new ArrayBuffer(1));
    this.#call('GET_STATUS', answer);
    return answer[0];
  }

  set status(status: number) {
    this.#call('SET_STATUS', new Uint8Array([status]));
  }

  get queueSizeMax(): number {
    const answer = new Uint8Array(new ArrayBuffer(2));
    this.#call('GET_VRING_NUM', answer);
    return new DataView(answer.buffer).getUint16(0, true);
  }

  config(offset: number, length: number): DataView {
    const bytes = new Uint8Array(new ArrayBuffer(8 + length));
    new DataView(bytes.buffer).setUint32(0, offset, true);
    new DataView(bytes.buffer).setUint32(4, length, true);
    this.#call('GET_CONFIG', bytes);
    return new DataView(bytes.buffer, 8);
  }

  /** Shows memory of this process to the device at an I/O address. */
  map(memory: { iova: number; address: number; length: number }): void {
    this.#iotlb(IotlbType.UPDATE, memory.iova, memory.length, memory.address);
  }

  unmap(range: { iova: number; length: number }): void {
    this.#iotlb(IotlbType.INVALIDATE, range.iova, range.length, 0);
  }

  /** Returns the eventfds that the two sides signal. */
  setupQueue(index: number, size: number, rings: VringAddresses): { kickFd: number; callFd: number } {
    this.#state('SET_VRING_NUM', index, size);
    const addresses = new DataView(new ArrayBuffer(40));
    addresses.setUint32(0, index, true);
    addresses.setBigUint64(8, BigInt(rings.descriptorAddress), true);
    addresses.setBigUint64(16, BigInt(rings.deviceAddress), true);
    addresses.setBigUint64(24, BigInt(rings.driverAddress), true);
    this.#call('SET_VRING_ADDR', new Uint8Array(addresses.buffer));
    this.#state('SET_VRING_BASE', index, 0);
    const [kickFd, callFd] = [createEventFd(), createEventFd()];
    this.#state('SET_VRING_KICK', index, kickFd);
    this.#state('SET_VRING_CALL', index, callFd);
    this.#state('SET_VRING_ENABLE', index, 1);
    return { kickFd, callFd };
  }

  /** Where the device would go on. */
  queueBase(index: number): number {
    const bytes = new Uint8Array(new ArrayBuffer(8));
    new DataView(bytes.buffer).setUint32(0, index, true);
    this.#call('GET_VRING_BASE', bytes);
    return new DataView(bytes.buffer).getUint32(4, true);
  }

  #iotlb(type: number, iova: number, length: number, address: number): void {
    const message = new DataView(new ArrayBuffer(messageBytes));
    message.setUint32(0, IOTLB_MSG_V2, true);
    message.setBigUint64(8, BigInt(iova), true);
    message.setBigUint64(16, BigInt(length), true);
    message.setBigUint64(24, BigInt(address), true);
    message.setUint8(32, ACCESS_RW);
    message.setUint8(33, type);
    const written = writeFd(this.#fd, new Uint8Array(message.buffer));
    if (written < 0) {
      throw new SystemCallError('write', -written, describeErrno(-written), 'of an IOTLB message');
    }
  }

  #state(request: keyof typeof Request, index: number, value: number): void {
    const bytes = new DataView(new ArrayBuffer(8));
    bytes.setUint32(0, index, true);
    bytes.setInt32(4, value, true);
    this.#call(request, new Uint8Array(bytes.buffer));
  }

  #u64(request: keyof typeof Request): bigint {
    const answer = new Uint8Array(new ArrayBuffer(8));
    this.#call(request, answer);
    return new DataView(answer.buffer).getBigUint64(0, true);
  }

  #setU64(request: keyof typeof Request, value: bigint): void {
    this.#call(request, new Uint8Array(new BigUint64Array([value]).buffer));
  }

  #call(request: keyof typeof Request, argument: Uint8Array | null): void {
    const result = ioctl(this.#fd, Request[request], argument);
    if (result < 0) {
      throw new SystemCallError('ioctl', -result, describeErrno(-result), request);
    }
  }
}
