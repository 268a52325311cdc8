/**
 * The vDPA bus over generic netlink, which is what the `vdpa` command does: devices are added, deleted and
 * listed. Numbers: include/uapi/linux/vdpa.h.
 *
 * Every function is asynchronous, the listing ones too: while a device is being added the kernel holds the
 * locks that a list needs, and adding ends only when the device's process has answered the driver's probe. A
 * process that waited on its own thread would wait for itself. Requests run one after the other, as they would
 * in the kernel, so they never take more than one thread of libuv's pool; a process with UV_THREADPOOL_SIZE=1
 * has then none left for its files.
 *
 * Nothing here can be cancelled: the kernel does not take a request back. Whoever stops waiting must expect
 * the device to appear, or to go away, later. process.exit() waits for the kernel too. A signal that ends the
 * process does not: it breaks the driver's probe off and leaves the device attached, with no disk.
 */
import { type ErrorCode, VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { describeErrno, Errno } from './errno.js';
import { systemCallError } from './ffi.js';
import { type GenericAnswer, type GenericCommand, GenericNetlinkSocket } from './netlink.js';
import type { GenericMessage, NetlinkOutcome } from './netlink-message.js';

const FAMILY_NAME = 'vdpa';
const FAMILY_VERSION = 1;

/** enum vdpa_command. */
const Command = { MGMTDEV_GET: 2, DEV_NEW: 3, DEV_DEL: 4, DEV_GET: 5 } as const;

/** enum vdpa_attr. */
const Attribute = {
  MGMTDEV_BUS_NAME: 1,
  MGMTDEV_DEV_NAME: 2,
  MGMTDEV_SUPPORTED_CLASSES: 3,
  DEV_NAME: 4,
  DEV_ID: 5,
  DEV_VENDOR_ID: 6,
  DEV_MAX_VQS: 7,
  DEV_MAX_VQ_SIZE: 8,
  DEV_MGMTDEV_MAX_VQS: 15,
  DEV_SUPPORTED_FEATURES: 16,
} as const;

type VdpaCommand = Omit<GenericCommand, 'family' | 'version'>;

/** Virtio device types that fit into the mask of supported classes. */
const DEVICE_CLASSES = 64;

export interface VdpaDevice {
  readonly name: string;
  /** `vduse`, or `bus/name` where the management device is on a bus, such as a PCI function. */
  readonly managementDevice: string;
  /** Virtio 5: the device type, 2 for a block device. */
  readonly deviceId: number;
  readonly vendorId: number;
  readonly maxVqs: number;
  readonly maxVqSize: number;
}

export interface VdpaManagementDevice {
  readonly name: string;
  /** The virtio device types that it can make. */
  readonly deviceIds: readonly number[];
  /** Undefined where an older kernel does not say. */
  readonly maxVqs: number | undefined;
  readonly supportedFeatures: bigint | undefined;
}

/**
 * Attaches a device to the vDPA bus, where the driver that was loaded first takes it. Resolves when the
 * driver's probe is over. That is no proof of a usable device: the kernel answers with success even if the
 * probe failed. The caller looks at the bus (see vdpa-bus.ts) for what came of it.
 */
export async function vdpaDeviceAdd(device: { name: string; managementDevice: 'vduse' }): Promise<void> {
  checkName(device.name);
  await request(`adding vDPA device "${device.name}"`, {
    command: Command.DEV_NEW,
    attributes: [
      [Attribute.DEV_NAME, device.name],
      [Attribute.MGMTDEV_DEV_NAME, device.managementDevice],
    ],
  });
}

/**
 * Detaches a device from the vDPA bus; its block device goes away. Where the process that serves the device is
 * dead or does not answer, this takes as long as the device's message timeout.
 */
export async function vdpaDeviceDelete(name: string): Promise<void> {
  checkName(name);
  await request(`deleting vDPA device "${name}"`, {
    command: Command.DEV_DEL,
    attributes: [[Attribute.DEV_NAME, name]],
  });
}

/** The devices on the vDPA bus. */
export async function vdpaDeviceList(): Promise<VdpaDevice[]> {
  const messages = await request('listing vDPA devices', { command: Command.DEV_GET, dump: true });
  return messages.map(decodeDevice);
}

/** What can make vDPA devices: `vduse` and hardware. */
export async function vdpaManagementDevices(): Promise<VdpaManagementDevice[]> {
  const action = 'listing vDPA management devices';
  return (await request(action, { command: Command.MGMTDEV_GET, dump: true })).map(decodeManagementDevice);
}

export function decodeDevice({ attributes }: GenericMessage): VdpaDevice {
  return {
    name: attributes.string(Attribute.DEV_NAME) ?? '',
    managementDevice: managementDeviceName({ attributes }),
    deviceId: attributes.u32(Attribute.DEV_ID) ?? 0,
    vendorId: attributes.u32(Attribute.DEV_VENDOR_ID) ?? 0,
    maxVqs: attributes.u32(Attribute.DEV_MAX_VQS) ?? 0,
    maxVqSize: attributes.u16(Attribute.DEV_MAX_VQ_SIZE) ?? 0,
  };
}

export function decodeManagementDevice({ attributes }: GenericMessage): VdpaManagementDevice {
  const classes = attributes.u64(Attribute.MGMTDEV_SUPPORTED_CLASSES) ?? 0n;
  const deviceIds: number[] = [];
  for (let id = 0; id < DEVICE_CLASSES; id++) {
    if ((classes >> BigInt(id)) & 1n) {
      deviceIds.push(id);
    }
  }
  return {
    name: managementDeviceName({ attributes }),
    deviceIds,
    maxVqs: attributes.u32(Attribute.DEV_MGMTDEV_MAX_VQS),
    supportedFeatures: attributes.u64(Attribute.DEV_SUPPORTED_FEATURES),
  };
}

function managementDeviceName({ attributes }: Pick<GenericMessage, 'attributes'>): string {
  const bus = attributes.string(Attribute.MGMTDEV_BUS_NAME);
  const name = attributes.string(Attribute.MGMTDEV_DEV_NAME) ?? '';
  return bus === undefined ? name : `${bus}/${name}`;
}

function checkName(name: string): void {
  const length = Buffer.byteLength(name);
  if (length === 0 || length > limits.deviceNameBytesMax || /[/\0]/.test(name)) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `vDPA device name ${JSON.stringify(name)}: it must have 1 to ${limits.deviceNameBytesMax} bytes, no "/" and no NUL`,
    );
  }
}

/** The end of the queue of requests. Its errors belong to whoever made the request. */
let lastRequest: Promise<unknown> = Promise.resolve();

function request(action: string, command: VdpaCommand): Promise<readonly GenericMessage[]> {
  const run = (): Promise<readonly GenericMessage[]> => transact(action, command);
  const result = lastRequest.then(run, run);
  lastRequest = result;
  return result;
}

async function transact(action: string, command: VdpaCommand): Promise<readonly GenericMessage[]> {
  const socket = new GenericNetlinkSocket();
  let answer: GenericAnswer;
  try {
    // Looked up each time: a module that was loaded again has another number.
    const family = await socket.resolveFamily(FAMILY_NAME);
    if (family === undefined) {
      throw new VduseError('MODULE_MISSING', `${action}: this kernel shows no vDPA bus (module vdpa)`, {
        hint:
          'Load the modules with `modprobe -a vduse virtio_vdpa virtio_blk`. If they are loaded, this process ' +
          "is in a network namespace of its own: the vDPA bus answers only in the host's.",
      });
    }
    answer = await socket.transact({ ...command, family, version: FAMILY_VERSION });
  } finally {
    socket.close();
  }
  if (answer.errno !== 0) {
    throw vdpaError(action, command.command, answer);
  }
  return answer.messages;
}

/** The error for what the kernel answered to one of the vDPA commands. */
export function vdpaError(action: string, command: number, outcome: NetlinkOutcome): VduseError {
  const { code, hint } = explain(command, outcome.errno);
  const cause = systemCallError('netlink', outcome.errno, outcome.text);
  // The kernel's own sentence tells more than the errno's; where it has none, the errno's has to do.
  const reason = outcome.text === '' ? describeErrno(outcome.errno).text : outcome.text;
  return new VduseError(code, `${action}: ${reason} (${cause.errnoName})`, { cause, hint });
}

function explain(command: number, code: number): { code: ErrorCode; hint?: string } {
  const adding = command === Command.DEV_NEW;
  switch (code) {
    case Errno.EPERM:
    case Errno.EACCES:
      return {
        code: 'PERMISSION_DENIED',
        hint: 'CAP_NET_ADMIN of the host is needed (a user namespace has only its own): run as root, or give the process that capability.',
      };
    case Errno.EEXIST:
      return {
        code: 'ALREADY_EXISTS',
        hint: 'It is attached already: `ls /sys/bus/vdpa/devices` lists what is.',
      };
    case Errno.ENODEV:
      return adding
        ? { code: 'MODULE_MISSING', hint: 'Load the module with `modprobe vduse`.' }
        : { code: 'NOT_FOUND', hint: '`ls /sys/bus/vdpa/devices` lists what is attached.' };
    case Errno.EBUSY:
      return { code: 'BUSY', hint: 'Something else uses the device.' };
    case Errno.EOPNOTSUPP:
      return { code: 'NOT_SUPPORTED' };
    case Errno.EINVAL:
      return adding
        ? {
            code: 'ATTACH_FAILED',
            hint: 'A VDUSE device of that name must exist, with all its queues set up, before it is attached.',
          }
        : { code: 'INVALID_ARGUMENT' };
    default:
      return { code: adding ? 'ATTACH_FAILED' : 'SYSTEM_CALL' };
  }
}
