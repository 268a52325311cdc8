/** Puts a served device on the vDPA bus under the driver that is wanted, and says what became of it. */
import { VduseError } from '../../base/errors.js';
import { bindVdpaDriver, vdpaBusDevice } from '../../native/vdpa-bus.js';
import type { VduseTransport } from './vduse-transport.js';

/** `virtio`: a device of this machine, such as /dev/vda. `vhost`: /dev/vhost-vdpa-N, for a virtual machine. */
export type VdpaBinding = 'virtio' | 'vhost';

export interface AttachedDevice {
  readonly driver: string;
  /** The path of the disk, such as `/dev/vda`. */
  readonly blockDevice: string | undefined;
  /** The path of the vhost device, such as `/dev/vhost-vdpa-0`. */
  readonly vhostDevice: string | undefined;
}

const drivers = { virtio: 'virtio_vdpa', vhost: 'vhost_vdpa' } as const;

async function bindWanted(name: string, binding: VdpaBinding): Promise<AttachedDevice> {
  const wanted = drivers[binding];
  if (vdpaBusDevice(name)?.driver !== wanted) {
    // The driver that was loaded first has it: a device goes to the first that asks.
    await bindVdpaDriver(name, wanted);
  }
  const found = vdpaBusDevice(name);
  const device: AttachedDevice = {
    driver: wanted,
    blockDevice: found?.blockDevice,
    vhostDevice: found?.vhostDevice,
  };
  if (
    found?.driver !== wanted ||
    (device.blockDevice ?? device.vhostDevice ?? found.virtioDevice) === undefined
  ) {
    throw new VduseError('ATTACH_FAILED', `'${name}' is on the vDPA bus, but ${wanted} did not take it`, {
      hint:
        binding === 'virtio'
          ? 'Load the drivers: modprobe -a virtio_vdpa virtio_blk. The kernel log (dmesg) tells more.'
          : 'Load the driver: modprobe vhost_vdpa. The kernel log (dmesg) tells more.',
    });
  }
  return device;
}

/** Throws ATTACH_FAILED, or what the bus says (see native/vdpa.ts); the device is off the bus then. */
export async function attachDevice(transport: VduseTransport, binding: VdpaBinding): Promise<AttachedDevice> {
  await transport.attach();
  try {
    return await bindWanted(transport.name, binding);
  } catch (error) {
    await transport.detach();
    throw error;
  }
}
