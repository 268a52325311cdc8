/** One open VDUSE device: its ioctls and messages with their types. */
import { Errno } from '../../native/errno.js';
import {
  decodeIotlbEntry,
  decodeIovaInfo,
  decodeQueueInfo,
  decodeRequest,
  decodeU64,
  encodeConfigData,
  encodeIotlbEntry,
  encodeIotlbEntryV2,
  encodeIovaInfo,
  encodeQueueConfig,
  encodeQueueEventFd,
  encodeQueueInfo,
  encodeResponse,
  encodeU64,
  encodeUserMemory,
  VduseIoctl,
  type VduseIotlbEntry,
  type VduseIovaInfo,
  type VduseQueueInfo,
  type VduseRequest,
  vduseMessageBytes,
} from '../../native/vduse-abi.js';
import type { VduseKernel } from '../../native/vduse-kernel.js';
import { vduseFailure } from './control.js';

export class VduseDeviceFile {
  readonly fd: number;
  readonly name: string;
  readonly #kernel: VduseKernel;
  readonly #apiVersion: number;
  readonly #message = new Uint8Array(new ArrayBuffer(vduseMessageBytes));

  /** Takes over an open device; `close` closes it. */
  constructor(device: { kernel: VduseKernel; name: string; fd: number; apiVersion: number }) {
    this.#kernel = device.kernel;
    this.fd = device.fd;
    this.name = device.name;
    this.#apiVersion = device.apiVersion;
  }

  close(): void {
    this.#kernel.close(this.fd);
  }

  /** The next message, or undefined when there is none now. */
  readRequest(): VduseRequest | undefined {
    const count = this.#kernel.read(this.fd, this.#message);
    if (count === -Errno.EAGAIN || count === -Errno.EINTR) {
      return undefined;
    }
    if (count < vduseMessageBytes) {
      throw vduseFailure(`cannot read the messages of '${this.name}'`, count < 0 ? count : -Errno.EIO);
    }
    return decodeRequest(this.#message);
  }

  /** Answers a message. Returns false when it is no longer waited for. */
  respond(response: Parameters<typeof encodeResponse>[0]): boolean {
    return this.#kernel.write(this.fd, encodeResponse(response)) === vduseMessageBytes;
  }

  driverFeatures(): bigint {
    const answer = encodeU64(0n);
    this.#call('read the features of', VduseIoctl.DEV_GET_FEATURES, answer);
    return decodeU64(answer);
  }

  setConfig(offset: number, data: Uint8Array): void {
    this.#call('set the configuration of', VduseIoctl.DEV_SET_CONFIG, encodeConfigData(offset, data));
  }

  /** Interrupts the driver for its configuration. False: there is no driver that runs. */
  injectConfigIrq(): boolean {
    return this.#kernel.ioctl(this.fd, VduseIoctl.DEV_INJECT_CONFIG_IRQ, null) >= 0;
  }

  setupQueue(index: number, maxSize: number): void {
    this.#call('set up a queue of', VduseIoctl.VQ_SETUP, encodeQueueConfig({ index, maxSize, group: 0 }));
  }

  /** Undefined beyond the device's last queue. */
  queueInfo(index: number): VduseQueueInfo | undefined {
    const answer = encodeQueueInfo(index);
    const result = this.#kernel.ioctl(this.fd, VduseIoctl.VQ_GET_INFO, answer);
    if (result === -Errno.EINVAL) {
      return undefined;
    }
    if (result < 0) {
      throw vduseFailure(`cannot ask for queue ${index} of '${this.name}'`, result);
    }
    return decodeQueueInfo(answer);
  }

  /** Sets or, with -1, takes away the eventfd that the driver's kicks signal. */
  setKickFd(index: number, fd: number): void {
    this.#call('set the kick eventfd of', VduseIoctl.VQ_SETUP_KICKFD, encodeQueueEventFd(index, fd));
  }

  /** The first map that overlaps the range, with a descriptor that the caller closes; undefined: none does. */
  iotlbMap(range: { start: bigint; last: bigint }): (VduseIotlbEntry & { fd: number }) | undefined {
    const v2 = this.#apiVersion >= 1;
    const answer = v2 ? encodeIotlbEntryV2({ ...range, addressSpace: 0 }) : encodeIotlbEntry(range);
    const request = v2 ? VduseIoctl.IOTLB_GET_FD2 : VduseIoctl.IOTLB_GET_FD;
    const fd = this.#kernel.ioctl(this.fd, request, answer);
    if (fd === -Errno.EINVAL || fd === -Errno.ENOENT || fd === -Errno.EPERM) {
      return undefined;
    }
    if (fd < 0) {
      throw vduseFailure(`cannot ask for the memory map of '${this.name}'`, fd);
    }
    return { ...decodeIotlbEntry(answer), fd };
  }

  /** What is mapped in a range; undefined where nothing is, or where the kernel (before 6.0) can't say. */
  iovaInfo(range: { start: bigint; last: bigint }): VduseIovaInfo | undefined {
    const answer = encodeIovaInfo({ ...range, addressSpace: 0 });
    return this.#kernel.ioctl(this.fd, VduseIoctl.IOTLB_GET_INFO, answer) < 0
      ? undefined
      : decodeIovaInfo(answer);
  }

  /** Puts memory of this process in place of a range's pages. It stays mapped until `deregisterMemory`. */
  registerMemory(memory: { address: number; iova: bigint; size: bigint }): void {
    this.#call(
      'register memory with',
      VduseIoctl.IOTLB_REG_UMEM,
      encodeUserMemory({ ...memory, addressSpace: 0 }),
    );
  }

  deregisterMemory(range: { iova: bigint; size: bigint }): void {
    const memory = { address: 0, addressSpace: 0, ...range };
    this.#call('take memory back from', VduseIoctl.IOTLB_DEREG_UMEM, encodeUserMemory(memory));
  }

  #call(action: string, request: number, argument: Uint8Array): void {
    const result = this.#kernel.ioctl(this.fd, request, argument);
    if (result < 0) {
      throw vduseFailure(`cannot ${action} '${this.name}'`, result);
    }
  }
}
