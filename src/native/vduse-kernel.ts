/**
 * The narrow seam below the VDUSE transport: everything that it asks of a VDUSE driver, in the kernel ABI's
 * bytes. Behind it stands Linux's module, or anything that plays it.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { formatCpuMask } from '../base/cpu-list.js';
import { VduseError } from '../base/errors.js';
import { closeFd, ioctl, OpenFlag, openFile, readFd, writeFd } from './fd.js';
import { type FdWatcher, watchReadable } from './fd-watcher.js';
import type { NotifierSpec } from './notifier.js';
import { vdpaDeviceAdd, vdpaDeviceDelete } from './vdpa.js';
import { vdpaBusDevice } from './vdpa-bus.js';
import { vduseControlPath, vduseDeviceDirectory } from './vduse-abi.js';

export interface VduseKernel {
  /** Opens the control device. Throws SYSTEM_CALL. */
  openControl(): number;
  /** Opens a device, non-blocking. Throws SYSTEM_CALL; EBUSY when it has an opener. */
  openDevice(name: string): number;
  close(fd: number): void;
  /** Returns the ioctl's result or a negative errno. */
  ioctl(fd: number, request: number, argument: Uint8Array | null): number;
  /** Return the count or a negative errno. */
  read(fd: number, buffer: Uint8Array): number;
  write(fd: number, buffer: Uint8Array): number;
  watch(fd: number, onReadable: () => void): FdWatcher;
  /** How a queue's thread interrupts the driver. */
  notifier(fd: number, queue: number): NotifierSpec;
  /** Milliseconds that the driver waits for an answer. */
  messageTimeoutMs(name: string): number;
  /**
   * Says on which processors a queue's interrupts are taken. Throws NOT_SUPPORTED where the driver can't (Linux
   * before 6.4), INVALID_ARGUMENT for processors that are not there.
   */
  setIrqAffinity(name: string, queue: number, cpus: readonly number[]): void;
  /** Puts the device on the vDPA bus. Resolves when the bus driver's probe is over, which needs answers meanwhile. */
  addToBus(name: string): Promise<void>;
  removeFromBus(name: string): Promise<void>;
  isOnBus(name: string): boolean;
}

const defaultTimeoutMs = 30_000;

/** Linux's own VDUSE. */
export const linuxVduse: VduseKernel = {
  openControl: () => openFile(vduseControlPath, OpenFlag.O_RDWR),
  openDevice: (name) => openFile(`${vduseDeviceDirectory}/${name}`, OpenFlag.O_RDWR | OpenFlag.O_NONBLOCK),
  close: closeFd,
  ioctl,
  read: readFd,
  write: writeFd,
  watch: watchReadable,
  notifier: (fd, queue) => ({ kind: 'vduse', fd, index: queue }),
  messageTimeoutMs: (name) => {
    try {
      const seconds = Number(readFileSync(`/sys/class/vduse/${name}/msg_timeout`, 'utf8'));
      // 0 means that the kernel waits for ever; a bound of our own is kept all the same.
      return seconds > 0 ? seconds * 1000 : defaultTimeoutMs;
    } catch {
      return defaultTimeoutMs;
    }
  },
  setIrqAffinity: (name, queue, cpus) => {
    const list = cpus.join(',');
    try {
      writeFileSync(`/sys/class/vduse/${name}/vq${queue}/irq_cb_affinity`, formatCpuMask(cpus));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') {
        throw new VduseError('NOT_SUPPORTED', "this kernel has no interrupt affinity for VDUSE's queues", {
          cause: error,
          hint: 'Linux 6.4 or newer has it. Leave the setting out.',
        });
      }
      throw new VduseError('INVALID_ARGUMENT', `interrupts can't be taken on processors ${list}`, {
        cause: error,
        hint: '`lscpu` shows which processors are online.',
      });
    }
  },
  addToBus: (name) => vdpaDeviceAdd({ name, managementDevice: 'vduse' }),
  removeFromBus: (name) => vdpaDeviceDelete(name),
  isOnBus: (name) => vdpaBusDevice(name) !== undefined,
};
