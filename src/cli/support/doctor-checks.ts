/** What `vduse doctor` looks at. Each check is one fact about this machine and this process. */
import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { errorMessage, VduseError } from '../../base/errors.js';
import { kernelRelease, type ModuleState, moduleState } from '../../native/modules.js';
import { chooseRing, ringVariable } from '../../native/open-ring.js';
import { effectiveCapabilities, ioUringSupport, vduseControl } from '../../native/probe.js';
import { vdpaManagementDevices } from '../../native/vdpa.js';
import { checkRunDirectory, runDirectory } from './control-socket.js';
import { listDevices } from './devices.js';
import { memoryLockLimit } from './process-limits.js';
import { formatSize } from './size.js';

export interface Check {
  readonly name: string;
  /** `warn`: exports work, but something is worth knowing. */
  readonly status: 'ok' | 'warn' | 'fail';
  readonly message: string;
  /** The command that mends it, or what to do. */
  readonly fix?: string;
}

/** Attaching devices holds the lock that the question to netlink needs. */
const NETLINK_MS_MAX = 5000;

const requiredModules = ['vduse', 'virtio_vdpa', 'virtio_blk'] as const;

export async function examine(): Promise<Check[]> {
  const states = new Map<string, ModuleState>(
    [...requiredModules, 'vhost_vdpa'].map((name) => [name, moduleState(name)]),
  );
  const isRoot = process.geteuid?.() === 0;
  const hasVduse = isThere(states.get('vduse'));
  const canLoad = isRoot && states.get('vduse') === 'loadable';
  return [
    kernelCheck(),
    ...requiredModules.map((name) => moduleCheck(name, states.get(name)!, isRoot)),
    vhostCheck(states.get('vhost_vdpa')!),
    controlCheck(hasVduse, canLoad),
    capabilityCheck(),
    await netlinkCheck(hasVduse, canLoad),
    ringCheck(),
    memoryLockCheck(),
    runDirectoryCheck(),
    ...(await deviceChecks()),
  ];
}

function isThere(state: ModuleState | undefined): boolean {
  return state === 'loaded' || state === 'builtin';
}

/** VDUSE came with Linux 5.15. */
function kernelCheck(): Check {
  const release = kernelRelease();
  const [major, minor] = release.split('.').map(Number);
  const name = 'kernel';
  if (major < 5 || (major === 5 && minor < 15)) {
    return {
      name,
      status: 'fail',
      message: `Linux ${release} has no VDUSE`,
      fix: 'Run Linux 5.15 or newer.',
    };
  }
  return { name, status: 'ok', message: `Linux ${release}` };
}

function moduleCheck(module: string, state: ModuleState, isRoot: boolean): Check {
  const name = `module ${module}`;
  switch (state) {
    case 'builtin':
      return { name, status: 'ok', message: 'part of the kernel' };
    case 'loaded':
      return { name, status: 'ok', message: 'loaded' };
    case 'loadable':
      return isRoot
        ? { name, status: 'ok', message: "not loaded; 'vduse export' loads it" }
        : { name, status: 'fail', message: 'not loaded', fix: asRoot(`modprobe ${module}`) };
    case 'missing':
      return {
        name,
        status: 'fail',
        message: `this kernel (${kernelRelease()}) has no such module here`,
        fix: missingModuleFix(module),
      };
  }
}

function missingModuleFix(module: string): string {
  if (!existsSync(`/lib/modules/${kernelRelease()}`)) {
    // A container has the host's kernel and not its modules.
    return `In a container: modprobe ${module} on the host. Otherwise the kernel was replaced since the start: reboot`;
  }
  const [, system = ''] = /^ID=["']?(\w+)/m.exec(readOrNothing('/etc/os-release')) ?? [];
  switch (system) {
    case 'ubuntu':
      return asRoot(`apt install linux-modules-extra-${kernelRelease()}`);
    case 'fedora':
    case 'rhel':
    case 'centos':
    case 'rocky':
    case 'almalinux':
      return asRoot(`dnf install kernel-modules-extra-${kernelRelease()}`);
    case 'debian':
      return `${asRoot('apt install linux-image-amd64')} (of Debian 13 or newer)`;
    default:
      return 'Install a kernel with CONFIG_VDPA_USER, CONFIG_VIRTIO_VDPA and CONFIG_VIRTIO_BLK';
  }
}

function readOrNothing(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function asRoot(command: string): string {
  return process.geteuid?.() === 0 ? command : `sudo ${command}`;
}

/** For virtual machines only. */
function vhostCheck(state: ModuleState): Check {
  const name = 'module vhost_vdpa';
  return state === 'missing'
    ? { name, status: 'warn', message: "not there: 'vduse export --vhost' does not work" }
    : { name, status: 'ok', message: `${state} (for --vhost)` };
}

function controlCheck(hasVduse: boolean, canLoad: boolean): Check {
  const access = vduseControl();
  const name = access.path;
  if (access.usable) {
    return { name, status: 'ok', message: 'can be opened' };
  }
  if (!hasVduse && canLoad) {
    return { name, status: 'ok', message: 'comes with the module vduse' };
  }
  const fix = hasVduse
    ? 'Run as root; in a container pass /dev/vduse through (docker run -v /dev/vduse:/dev/vduse --privileged)'
    : 'The module vduse comes first, see above';
  return { name, status: 'fail', message: access.reason, fix };
}

function capabilityCheck(): Check {
  const name = 'privileges';
  const capabilities = effectiveCapabilities();
  if (!capabilities.netAdmin) {
    return {
      name,
      status: 'fail',
      message: 'without CAP_NET_ADMIN devices can be made, but not attached',
      fix: 'Run as root (sudo vduse ...)',
    };
  }
  if (!capabilities.ofTheHost) {
    return {
      name,
      status: 'fail',
      message: 'CAP_NET_ADMIN of a user namespace does not count: attaching is refused',
      fix: 'Run as root of the host, not in a rootless container',
    };
  }
  return { name, status: 'ok', message: 'CAP_NET_ADMIN' };
}

async function netlinkCheck(hasVduse: boolean, canLoad: boolean): Promise<Check> {
  const name = 'vDPA bus (netlink)';
  if (!hasVduse) {
    return canLoad
      ? { name, status: 'ok', message: 'comes with the module vduse' }
      : {
          name,
          status: 'fail',
          message: 'needs the module vduse',
          fix: 'The module vduse comes first, see above',
        };
  }
  const timeout = delay(NETLINK_MS_MAX, undefined, { ref: false });
  try {
    const found = await Promise.race([vdpaManagementDevices(), timeout]);
    if (found === undefined) {
      return {
        name,
        status: 'fail',
        message: 'does not answer: a device is being attached or removed, and its process does not answer',
        fix: 'vduse list',
      };
    }
    return found.some((device) => device.name === 'vduse')
      ? { name, status: 'ok', message: 'answers' }
      : { name, status: 'fail', message: 'does not know VDUSE', fix: asRoot('modprobe vduse') };
  } catch (error) {
    const hint = error instanceof VduseError ? error.hint : undefined;
    return {
      name,
      status: 'fail',
      message: errorMessage(error),
      ...(hint === undefined ? {} : { fix: hint }),
    };
  }
}

/** Without io_uring exports work all the same, by system calls. */
function ringCheck(): Check {
  const name = 'io_uring';
  const { usable, disabledSetting } = ioUringSupport();
  try {
    if (chooseRing().kind === 'io_uring') {
      return usable
        ? { name, status: 'ok', message: 'allowed, queues use it' }
        : {
            name,
            status: 'fail',
            message: `refused, and ${ringVariable} wants it`,
            fix: `unset ${ringVariable}`,
          };
    }
  } catch (error) {
    return { name, status: 'fail', message: errorMessage(error), fix: `unset ${ringVariable}` };
  }
  const instead = 'queues use system calls, which are slower';
  if (usable) {
    const message = `allowed, but ${ringVariable} is set: ${instead}`;
    return { name, status: 'warn', message, fix: `unset ${ringVariable}` };
  }
  if (disabledSetting !== undefined && disabledSetting > 0) {
    return {
      name,
      status: 'warn',
      message: `disabled on this machine (kernel.io_uring_disabled is ${disabledSetting}): ${instead}`,
      fix: asRoot('sysctl kernel.io_uring_disabled=0'),
    };
  }
  return {
    name,
    status: 'warn',
    message: `refused to this process, probably by a seccomp filter: ${instead}`,
    fix: 'In a container: docker run --security-opt seccomp=unconfined, or a profile that allows io_uring',
  };
}

/** Since Linux 5.12, before VDUSE, rings are charged to the memory cgroup and no longer to this limit. */
function memoryLockCheck(): Check {
  const limit = memoryLockLimit();
  const text = limit === undefined ? 'no limit' : formatSize(limit);
  return { name: 'locked memory', status: 'ok', message: `${text} (not needed for exports)` };
}

function runDirectoryCheck(): Check {
  const name = runDirectory();
  try {
    checkRunDirectory();
    return { name, status: 'ok', message: 'takes the control sockets' };
  } catch (error) {
    return {
      name,
      status: 'fail',
      message: errorMessage(error),
      fix: 'Run as root, or set VDUSE_RUN_DIR to a directory of your own',
    };
  }
}

async function deviceChecks(): Promise<Check[]> {
  const devices = await listDevices();
  return devices
    .filter((device) => device.state === 'left-behind')
    .map((device) => ({
      name: `device ${device.name}`,
      status: 'warn' as const,
      message: 'left behind by a process that is gone; who uses its disk waits for ever',
      fix: `vduse remove ${device.name}`,
    }));
}
