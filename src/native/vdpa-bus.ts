/**
 * VDUSE and vDPA devices as sysfs shows them, who has them open, and which driver they are bound to. Reading
 * never waits: no attribute is read that takes a device's lock, which is held while a driver probes it.
 * `root` is where sysfs and procfs are looked for.
 */
import { existsSync } from 'node:fs';
import { constants, open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { VduseError } from '../base/errors.js';
import { type DescriptorHolders, descriptorHolders } from './descriptor-holders.js';
import { Errno } from './errno.js';
import { systemCallError } from './ffi.js';
import { listDirectory, readLink, readNumber } from './kernel-files.js';

const VDUSE_CLASS = 'sys/class/vduse';
const VDPA_DEVICES = 'sys/bus/vdpa/devices';
const VDPA_DRIVERS = 'sys/bus/vdpa/drivers';
/** The class has the control device too. */
const CONTROL = 'control';

export interface VduseDeviceInfo {
  readonly name: string;
  /** How long the kernel waits for an answer of the device's process; 0 is for ever. */
  readonly msgTimeoutSeconds: number | undefined;
  /** Undefined on kernels before 6.4. */
  readonly bounceSizeBytes: number | undefined;
}

/** The VDUSE devices that exist, attached or not. */
export function vduseDevices(root = '/'): VduseDeviceInfo[] {
  return listDirectory(root, VDUSE_CLASS)
    .filter((name) => name !== CONTROL)
    .map((name) => ({
      name,
      msgTimeoutSeconds: readNumber(root, `${VDUSE_CLASS}/${name}/msg_timeout`),
      bounceSizeBytes: readNumber(root, `${VDUSE_CLASS}/${name}/bounce_size`),
    }));
}

export interface VdpaBusDevice {
  readonly name: string;
  /** `virtio_vdpa`, `vhost_vdpa`, or undefined where none has taken it. */
  readonly driver: string | undefined;
  /** The virtio device that virtio_vdpa made, such as `virtio3`. */
  readonly virtioDevice: string | undefined;
  /** The disk that virtio_blk made of it, such as `/dev/vda`; undefined if its probe failed or is not over. */
  readonly blockDevice: string | undefined;
  /** The device that vhost_vdpa made, such as `/dev/vhost-vdpa-0`. */
  readonly vhostDevice: string | undefined;
}

/** The devices on the vDPA bus and what became of them. */
export function vdpaBusDevices(root = '/'): VdpaBusDevice[] {
  return listDirectory(root, VDPA_DEVICES).map((name) => describeDevice(name, root));
}

/** One device of the vDPA bus, or undefined if it is not attached. */
export function vdpaBusDevice(name: string, root = '/'): VdpaBusDevice | undefined {
  return listDirectory(root, VDPA_DEVICES).includes(name) ? describeDevice(name, root) : undefined;
}

function describeDevice(name: string, root: string): VdpaBusDevice {
  const path = `${VDPA_DEVICES}/${name}`;
  const driver = readLink(root, `${path}/driver`);
  const children = listDirectory(root, path);
  const virtioDevice = children.find((child) => /^virtio\d+$/.test(child));
  const disk = virtioDevice && listDirectory(root, `${path}/${virtioDevice}/block`)[0];
  const vhostDevice = children.find((child) => /^vhost-vdpa-\d+$/.test(child));
  return {
    name,
    driver: driver === undefined ? undefined : basename(driver),
    virtioDevice,
    blockDevice: disk && `/dev/${disk}`,
    vhostDevice: vhostDevice && `/dev/${vhostDevice}`,
  };
}

/** The processes that have /dev/vduse/NAME open; at most one, and those that inherited its descriptor. */
export function vduseDeviceHolders(name: string, root = '/'): DescriptorHolders {
  // A container's /dev may be mounted elsewhere; its links end alike.
  return descriptorHolders((link) => link.endsWith(`/vduse/${name}`), root);
}

/**
 * Gives a vDPA device to a driver: virtio_vdpa makes a disk of this machine of it, vhost_vdpa a device for a
 * virtual machine. Asynchronous, for binding runs the driver's probe, which the device's process must answer;
 * unbinding vhost_vdpa waits until whoever has the vhost device open closes it. If binding fails the device is
 * left without a driver.
 */
export async function bindVdpaDriver(
  name: string,
  driver: 'virtio_vdpa' | 'vhost_vdpa',
  root = '/',
): Promise<void> {
  const device = vdpaBusDevice(name, root);
  if (device === undefined) {
    throw new VduseError(
      'NOT_FOUND',
      `binding vDPA device "${name}" to ${driver}: it is not on the vDPA bus`,
      {
        hint: 'Attach it first: `ls /sys/bus/vdpa/devices` lists what is attached.',
      },
    );
  }
  if (device.driver === driver) {
    return;
  }
  const path = `${VDPA_DRIVERS}/${driver}`;
  if (!existsSync(join(root, path))) {
    throw new VduseError(
      'MODULE_MISSING',
      `binding vDPA device "${name}" to ${driver}: that driver is not loaded`,
      {
        hint: `Load it with \`modprobe ${driver}\`.`,
      },
    );
  }
  const override = `${VDPA_DEVICES}/${name}/driver_override`;
  if (existsSync(join(root, override))) {
    // Before unbinding: no other driver may take the device meanwhile, and one set earlier must not be in the way.
    await writeAttribute(override, driver, root);
  }
  if (device.driver !== undefined) {
    await writeAttribute(`${VDPA_DRIVERS}/${device.driver}/unbind`, name, root);
  }
  await writeAttribute(`${path}/bind`, name, root);
}

/** One write, as sysfs wants it; it may take as long as a driver's probe. */
async function writeAttribute(path: string, value: string, root: string): Promise<void> {
  const full = join(root, path);
  try {
    const file = await open(full, constants.O_WRONLY);
    try {
      await file.write(value);
    } finally {
      await file.close();
    }
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    throw errno === undefined ? error : attributeError(full, value, -errno);
  }
}

function attributeError(path: string, value: string, code: number): VduseError {
  const cause = systemCallError('write', code, `"${value}" to ${path}`);
  if (code === Errno.EACCES || code === Errno.EPERM || code === Errno.EROFS) {
    return new VduseError('PERMISSION_DENIED', cause.message, {
      cause,
      hint: 'Run as root; a container needs a writable /sys.',
    });
  }
  return new VduseError('ATTACH_FAILED', cause.message, {
    cause,
    hint: 'The kernel log (dmesg) may say why.',
  });
}
