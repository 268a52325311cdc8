/**
 * Removes a VDUSE device whose process is gone. Detaching needs answers to the driver's messages, and an end of
 * the requests that the process had taken: so the device is served once more, by one that answers with errors.
 */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import type { Logger } from '../base/log.js';
import { FailingDevice } from '../device/failing-device.js';
import { DeviceId } from '../device/virtio-device.js';
import { readText } from '../native/kernel-files.js';
import { type VdpaBusDevice, vdpaBusDevice } from '../native/vdpa-bus.js';
import { linuxVduse } from '../native/vduse-kernel.js';
import { VduseControl } from '../transport/vduse/control.js';
import { openDeviceFile } from '../transport/vduse/open-device.js';
import { VduseTransport } from '../transport/vduse/vduse-transport.js';

export interface RemovedDevice {
  /** Requests that waited for the device, and ended with an error. */
  readonly answered: number;
}

/**
 * Throws BUSY when a process serves the device, and NOT_FOUND. Throws DEVICE_BROKEN when nothing but a restart of
 * the machine removes the device: the kernel has given it up, or has requests of which it can't be told which
 * they are. Detaching would wait for these for ever, and all other attaching and detaching would wait with it.
 */
export async function removeLeftBehindDevice(
  name: string,
  options: { readonly logger: Logger },
): Promise<RemovedDevice> {
  const bus = vdpaBusDevice(name);
  if (bus === undefined) {
    destroy(name);
    return { answered: 0 };
  }
  const device = new FailingDevice({ deviceId: virtioDeviceId(bus), queueCount: await countQueues(name) });
  const transport = await VduseTransport.adopt({ name, device, logger: options.logger });
  if (device.unknown > 0) {
    // It stays on the bus, so destroying it fails; what matters is that nobody serves it half.
    await transport.close().catch(() => undefined);
    throw new VduseError(
      'DEVICE_BROKEN',
      `'${name}' can't be removed: ${device.unknown} requests that its process left unanswered can't be told from those that it answered`,
      {
        hint: 'Whoever waits for them waits until the machine is started again. Other devices are not concerned.',
      },
    );
  }
  try {
    await transport.detach();
  } finally {
    await transport.close();
  }
  return { answered: device.answered };
}

/** Of a device that is off the bus, which nobody can be waiting for. */
function destroy(name: string): void {
  const control = new VduseControl(linuxVduse);
  try {
    control.destroy(name);
  } finally {
    control.close();
  }
}

/** sysfs tells it of the virtio device that virtio_vdpa made; vhost_vdpa's are disks, as far as is known. */
function virtioDeviceId(bus: VdpaBusDevice): number {
  const path = `sys/bus/vdpa/devices/${bus.name}/${bus.virtioDevice}/device`;
  const id = bus.virtioDevice === undefined ? undefined : readText('/', path);
  return id === undefined ? DeviceId.BLOCK : Number(id);
}

/** The kernel does not say how many queues a device has; it refuses to speak of those that there are not. */
async function countQueues(name: string): Promise<number> {
  const file = await openDeviceFile({ kernel: linuxVduse, name, apiVersion: 0 });
  try {
    for (let index = 0; index < limits.queueCountMax; index++) {
      if (file.queueInfo(index) === undefined) {
        return index;
      }
    }
    return limits.queueCountMax;
  } catch (error) {
    throw new VduseError(
      'DEVICE_BROKEN',
      `the kernel has given up '${name}': its process did not answer in time`,
      {
        cause: error,
        hint: 'Such a device stays until the machine is started again. It harms nobody who does not use its disk.',
      },
    );
  } finally {
    file.close();
  }
}
