/**
 * What this machine lets this process do. Each function reads one fact and returns plain data. `root` is where
 * procfs and /dev are looked for.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import { VduseError } from '../base/errors.js';
import { describeErrno, Errno } from './errno.js';
import { closeFd } from './fd.js';
import { addressOf, errno, libcCalls } from './ffi.js';
import { readNumber, readText } from './kernel-files.js';

const CAP_NET_ADMIN = 12n;
const CAP_SYS_ADMIN = 21n;
const SYS_IO_URING_SETUP = 425;
const ENXIO = 6;
/** struct io_uring_params; of the module, so that it is not collected while the kernel writes to it. */
const ioUringParams = new Uint8Array(new ArrayBuffer(120));

export interface Capabilities {
  /** The mask of /proc/self/status, CapEff. */
  readonly effective: bigint;
  readonly netAdmin: boolean;
  readonly sysAdmin: boolean;
  /**
   * Whether they count outside of this process's user namespace. In a rootless container they do not: the mask
   * is full there, and attaching a device is refused all the same.
   */
  readonly ofTheHost: boolean;
}

export function effectiveCapabilities(root = '/'): Capabilities {
  const mask = /^CapEff:\s*([0-9a-fA-F]+)$/m.exec(readText(root, 'proc/self/status') ?? '');
  if (mask === null) {
    throw new VduseError('NOT_SUPPORTED', `${join(root, 'proc/self/status')}: it has no line CapEff`, {
      hint: 'Mount procfs at /proc.',
    });
  }
  const effective = BigInt(`0x${mask[1]}`);
  // The initial user namespace maps all 2^32 - 1 user ids to themselves; kernels without namespaces have no file.
  const map = readText(root, 'proc/self/uid_map') ?? '0 0 4294967295';
  return {
    effective,
    netAdmin: ((effective >> CAP_NET_ADMIN) & 1n) === 1n,
    sysAdmin: ((effective >> CAP_SYS_ADMIN) & 1n) === 1n,
    ofTheHost: map.trim().split(/\s+/).join(' ') === '0 0 4294967295',
  };
}

export interface DeviceAccess {
  readonly path: string;
  readonly usable: boolean;
  /** Of opening it for reading and writing; 0 if that worked. */
  readonly errno: number;
  /** Why it is not usable and what to do; empty if it is. */
  readonly reason: string;
}

/** Whether /dev/vduse/control is there and can be opened. */
export function vduseControl(root = '/'): DeviceAccess {
  const path = join(root, 'dev/vduse/control');
  try {
    closeSync(openSync(path, constants.O_RDWR | constants.O_NONBLOCK));
    return { path, usable: true, errno: 0, reason: '' };
  } catch (error) {
    const code = -((error as NodeJS.ErrnoException).errno ?? -Errno.EIO);
    return { path, usable: false, errno: code, reason: controlReason(path, code) };
  }
}

function controlReason(path: string, code: number): string {
  const { name, text } = describeErrno(code);
  const failure = `${path}: ${text} (${name}).`;
  switch (code) {
    case Errno.ENOENT:
      return `${failure} Load the module with \`modprobe vduse\`; a container needs the host's /dev/vduse too.`;
    case Errno.EACCES:
    case Errno.EPERM:
      return `${failure} Run as root, give this user the device, or allow it in the container's device rules.`;
    case Errno.ENODEV:
    case ENXIO:
      return `${failure} The file is left over from a module that is not loaded: \`modprobe vduse\`.`;
    default:
      return failure;
  }
}

export interface IoUringSupport {
  readonly usable: boolean;
  /** Of io_uring_setup; 0 if it worked. EPERM: the sysctl or a seccomp filter. ENOSYS: the kernel or a filter. */
  readonly errno: number;
  /** kernel.io_uring_disabled: 0 allowed, 1 for a group and CAP_SYS_ADMIN only, 2 for nobody; undefined before 6.6. */
  readonly disabledSetting: number | undefined;
}

/** Asks the kernel for a ring of one entry, for only that tells what a container's filter says. */
export function ioUringSupport(root = '/'): IoUringSupport {
  ioUringParams.fill(0);
  const fd = libcCalls.syscall6(SYS_IO_URING_SETUP, 1, addressOf(ioUringParams), 0, 0, 0, 0);
  const code = fd < 0 ? errno() : 0;
  if (fd >= 0) {
    closeFd(fd);
  }
  return {
    usable: code === 0,
    errno: code,
    disabledSetting: readNumber(root, 'proc/sys/kernel/io_uring_disabled'),
  };
}
