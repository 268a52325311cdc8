import { setTimeout as sleep } from 'node:timers/promises';
import { SystemCallError, VduseError } from '../../base/errors.js';
import { Errno } from '../../native/errno.js';
import type { VduseKernel } from '../../native/vduse-kernel.js';
import { VduseDeviceFile } from './device-file.js';

/** devtmpfs is at once, udev may take its time over the node's permissions. */
const attempts = 40;
const pauseMs = 50;

/**
 * Opens /dev/vduse/NAME. Throws BUSY when another process serves it, NOT_FOUND when the node does not appear and
 * PERMISSION_DENIED when it may not be opened.
 */
export async function openDeviceFile(device: {
  kernel: VduseKernel;
  name: string;
  apiVersion: number;
}): Promise<VduseDeviceFile> {
  for (let attempt = 1; ; attempt++) {
    try {
      return new VduseDeviceFile({ ...device, fd: device.kernel.openDevice(device.name) });
    } catch (error) {
      const errno = error instanceof SystemCallError ? error.errno : 0;
      if (errno === Errno.EBUSY) {
        throw new VduseError('BUSY', `the VDUSE device '${device.name}' is served by another process`, {
          cause: error,
          hint: `'vduse list' shows which one.`,
        });
      }
      const denied = errno === Errno.EACCES;
      if (!denied && errno !== Errno.ENOENT) {
        throw error;
      }
      if (attempt === attempts && denied) {
        throw new VduseError(
          'PERMISSION_DENIED',
          `cannot open /dev/vduse/${device.name}: permission denied`,
          {
            cause: error,
            hint: 'Run as root, or give your user access to /dev/vduse/* (a udev rule).',
          },
        );
      }
      if (attempt === attempts) {
        throw new VduseError('NOT_FOUND', `/dev/vduse/${device.name} has not appeared`, {
          cause: error,
          hint: "In a container, /dev/vduse must be the host's: bind-mount it.",
        });
      }
    }
    await sleep(pauseMs);
  }
}
