/** /dev/vduse/control: makes and destroys devices. */
import { SystemCallError, VduseError } from '../../base/errors.js';
import { describeErrno, Errno } from '../../native/errno.js';
import {
  decodeU64,
  encodeDeviceConfig,
  encodeDeviceName,
  encodeU64,
  type VduseDeviceConfig,
  VduseIoctl,
  vduseApiVersionMax,
} from '../../native/vduse-abi.js';
import type { VduseKernel } from '../../native/vduse-kernel.js';

export function vduseFailure(action: string, result: number): VduseError {
  const { name, text } = describeErrno(-result);
  return new VduseError('SYSTEM_CALL', `${action}: ${text} (${name})`);
}

function openError(error: unknown): unknown {
  if (!(error instanceof SystemCallError)) {
    return error;
  }
  if (error.errno === Errno.EACCES || error.errno === Errno.EPERM) {
    return new VduseError('PERMISSION_DENIED', `cannot open the VDUSE control device: ${error.message}`, {
      cause: error,
      hint: 'Run as root, or give your user access to /dev/vduse/control (a udev rule).',
    });
  }
  return new VduseError('MODULE_MISSING', `this machine has no VDUSE: ${error.message}`, {
    cause: error,
    hint: "Load the modules: modprobe -a vduse virtio_vdpa virtio_blk. 'vduse doctor' tells more.",
  });
}

export class VduseControl {
  readonly #kernel: VduseKernel;
  readonly #fd: number;
  /** The version that both sides speak. */
  readonly apiVersion: number;

  /** Opens the control device. Throws MODULE_MISSING or PERMISSION_DENIED. `apiVersion`: the newest to ask for. */
  constructor(kernel: VduseKernel, apiVersion: number = vduseApiVersionMax) {
    this.#kernel = kernel;
    try {
      this.#fd = kernel.openControl();
    } catch (error) {
      throw openError(error);
    }
    const answer = encodeU64(0n);
    const result = kernel.ioctl(this.#fd, VduseIoctl.GET_API_VERSION, answer);
    this.apiVersion = result < 0 ? 0 : Math.min(apiVersion, Number(decodeU64(answer)));
    const set = kernel.ioctl(this.#fd, VduseIoctl.SET_API_VERSION, encodeU64(BigInt(this.apiVersion)));
    if (set < 0) {
      this.close();
      throw vduseFailure(`VDUSE API version ${this.apiVersion} was refused`, set);
    }
  }

  /** Throws ALREADY_EXISTS when the name is taken, NOT_SUPPORTED when the kernel refuses the device. */
  create(device: Omit<VduseDeviceConfig, 'groupCount' | 'addressSpaceCount'>): void {
    const groups = this.apiVersion >= 1 ? 1 : 0;
    const bytes = encodeDeviceConfig({ ...device, groupCount: groups, addressSpaceCount: groups });
    const result = this.#kernel.ioctl(this.#fd, VduseIoctl.CREATE_DEV, bytes);
    if (result === -Errno.EEXIST) {
      throw new VduseError('ALREADY_EXISTS', `a VDUSE device named '${device.name}' exists already`);
    }
    if (result === -Errno.EINVAL) {
      throw new VduseError(
        'NOT_SUPPORTED',
        `the kernel refused the VDUSE device '${device.name}': its type ${device.deviceId}, features 0x${device.features.toString(16)}, ${device.queueCount} queues or ${device.config.length} configuration bytes are not to its liking`,
      );
    }
    if (result < 0) {
      throw vduseFailure(`cannot make the VDUSE device '${device.name}'`, result);
    }
  }

  /** Throws NOT_FOUND, or BUSY while the device is open or on the vDPA bus. */
  destroy(name: string): void {
    const result = this.#kernel.ioctl(this.#fd, VduseIoctl.DESTROY_DEV, encodeDeviceName(name));
    if (result === -Errno.EBUSY) {
      throw new VduseError(
        'BUSY',
        `the VDUSE device '${name}' can't be destroyed: it is open or still on the vDPA bus`,
      );
    }
    if (result === -Errno.EINVAL || result === -Errno.ENODEV || result === -Errno.ENOENT) {
      throw new VduseError('NOT_FOUND', `there is no VDUSE device named '${name}'`);
    }
    if (result < 0) {
      throw vduseFailure(`cannot destroy the VDUSE device '${name}'`, result);
    }
  }

  close(): void {
    this.#kernel.close(this.#fd);
  }
}
