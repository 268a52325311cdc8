/**
 * Connections to Ceph clusters. A connection has a dozen threads of its own, so nodes of one configuration share
 * one, and it ends with the last of them.
 */
import { createHash } from 'node:crypto';
import { VduseError } from '../../../base/errors.js';
import { describeErrno } from '../../../native/errno.js';
import {
  clusterOption,
  connectCluster,
  createCluster,
  readClusterConfiguration,
  setClusterOption,
  shutDownCluster,
} from '../../../native/librbd-control.js';
import type { BlockServices, RbdNodeOptions } from '../../node.js';
import { connectError } from './rbd-errors.js';
import { defaultTimeoutS, tuneCluster } from './rbd-tuning.js';

export interface ClusterConnection {
  readonly handle: number;
  /** Seconds that a step of opening may take. */
  readonly timeoutS: number;
  release(): Promise<void>;
}

interface SharedConnection {
  users: number;
  readonly connecting: Promise<{ handle: number; timeoutS: number }>;
}

const connections = new Map<string, SharedConnection>();

/** Throws NOT_SUPPORTED, NOT_FOUND, PERMISSION_DENIED, TIMEOUT, INVALID_ARGUMENT or SYSTEM_CALL. */
export async function acquireCluster(
  options: RbdNodeOptions,
  services: BlockServices,
): Promise<ClusterConnection> {
  const settings = clusterSettings(options, services);
  const key = createHash('sha256')
    .update(JSON.stringify([options.user, options.conf, settings]))
    .digest('hex');
  let shared = connections.get(key);
  if (shared === undefined) {
    shared = { users: 0, connecting: connect(options, settings) };
    connections.set(key, shared);
  }
  const { connecting } = shared;
  const found = shared;
  found.users++;
  const leave = (): boolean => {
    if (--found.users > 0) {
      return false;
    }
    connections.delete(key);
    return true;
  };
  try {
    const { handle, timeoutS } = await connecting;
    const release = async (): Promise<void> => {
      if (leave()) {
        await shutDownCluster(handle);
      }
    };
    return { handle, timeoutS, release };
  } catch (error) {
    leave();
    throw error;
  }
}

/** Options of librados, by its names. As QEMU's, and those that keep what a front-end asked for. */
function clusterSettings(options: RbdNodeOptions, services: BlockServices): [string, string][] {
  const settings: [string, string][] = [
    // Ceph drops discards of less than 64 KiB otherwise; a guest counts on them.
    ['rbd_skip_partial_discard', 'false'],
    ['rbd_cache', options.cache?.direct === true ? 'false' : 'true'],
  ];
  if (options.servers !== undefined && options.servers.length > 0) {
    const monitors = options.servers.map(({ host, port }) =>
      host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`,
    );
    settings.push(['mon_host', monitors.join(',')]);
  }
  if (options.authClientRequired !== undefined) {
    settings.push(['auth_client_required', options.authClientRequired.join(';')]);
  }
  if (options.keySecret !== undefined) {
    settings.push(['key', Buffer.from(services.secret(options.keySecret)).toString('base64')]);
  }
  const seconds = [
    ['client_mount_timeout', options.mountTimeout],
    ['rados_mon_op_timeout', options.monitorTimeout],
    ['rados_osd_op_timeout', options.osdTimeout],
  ] as const;
  for (const [name, value] of seconds) {
    if (value !== undefined) {
      settings.push([name, `${value}`]);
    }
  }
  return settings;
}

async function connect(
  options: RbdNodeOptions,
  settings: readonly [string, string][],
): Promise<{ handle: number; timeoutS: number }> {
  const handle = createCluster(options.user);
  if (handle < 0) {
    throw connectError(options, handle, 0);
  }
  try {
    await configure(handle, options, settings);
    const timeoutS = Number(clusterOption(handle, 'client_mount_timeout') ?? defaultTimeoutS);
    const result = await connectCluster(handle);
    if (result < 0) {
      throw connectError(options, result, timeoutS);
    }
    return { handle, timeoutS };
  } catch (error) {
    await shutDownCluster(handle);
    throw error;
  }
}

async function configure(
  handle: number,
  options: RbdNodeOptions,
  settings: readonly [string, string][],
): Promise<void> {
  const read = await readClusterConfiguration(handle, options.conf);
  // Without a file at the usual places all may still be in the options; one that was named has to be there.
  if (read < 0 && options.conf !== undefined) {
    throw new VduseError(
      'NOT_FOUND',
      `cannot read the Ceph configuration '${options.conf}': ${describeErrno(-read).text}`,
    );
  }
  for (const [name, value] of settings) {
    const result = setClusterOption(handle, name, value);
    if (result < 0) {
      // The value may be a key.
      throw new VduseError(
        'INVALID_ARGUMENT',
        `Ceph does not take the value that option '${name}' was given: ${describeErrno(-result).text}`,
      );
    }
  }
  tuneCluster(handle, { cached: options.cache?.direct !== true });
}
