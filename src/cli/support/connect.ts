/** Finds the control socket of an export, or says why there is none. */
import { existsSync, statSync } from 'node:fs';
import { VduseError } from '../../base/errors.js';
import { vduseDeviceHolders } from '../../native/vdpa-bus.js';
import { controlSocketPath } from './control-socket.js';
import { deviceExists } from './devices.js';
import { QmpClient, type QmpClientOptions } from './qmp-client.js';

/** Throws NOT_FOUND, DEVICE_LEFT_BEHIND, NOT_SUPPORTED for a device of another program, or what connecting throws. */
export async function connectToExport(name: string): Promise<QmpClient> {
  const client = await QmpClient.connect(controlSocketPath(name));
  if (client !== undefined) {
    return client;
  }
  if (!deviceExists(name)) {
    throw new VduseError('NOT_FOUND', `there is no VDUSE device '${name}'`, {
      hint: "'vduse list' shows what there is.",
    });
  }
  const { processes, unreadable } = vduseDeviceHolders(name);
  const holder = processes[0];
  if (holder !== undefined) {
    throw new VduseError(
      'NOT_SUPPORTED',
      `'${name}' is served by process ${holder.pid} (${holder.command}), which has no control socket here`,
      { hint: 'Ask that program; `kill -TERM` ends most of them in order.' },
    );
  }
  if (unreadable > 0) {
    throw new VduseError('PERMISSION_DENIED', `who serves '${name}' can't be seen by this user`, {
      hint: 'Run as root.',
    });
  }
  throw new VduseError('DEVICE_LEFT_BEHIND', `'${name}' was left behind by a process that is gone`, {
    hint: `Remove it: vduse remove ${name}`,
  });
}

/**
 * By the path of a monitor's socket, or by the name of an export's device; a name that is no device's may be that of a
 * socket in the working directory. Throws as connectToExport does.
 */
export async function connectToMonitor(socket: string, options: QmpClientOptions = {}): Promise<QmpClient> {
  const isPath = socket.includes('/') || (!existsSync(controlSocketPath(socket)) && isSocket(socket));
  const path = isPath ? socket : controlSocketPath(socket);
  const client = await QmpClient.connect(path, options);
  if (client === undefined) {
    throw new VduseError('NOT_FOUND', `cannot connect to a monitor: ${whyNobodyAnswers(socket, path)}`, {
      hint: "Give the path of the socket of a storage daemon's monitor, or the name of a device.",
    });
  }
  return client;
}

function whyNobodyAnswers(written: string, path: string): string {
  const stats = statSync(path, { throwIfNoEntry: false });
  if (stats === undefined) {
    return written === path
      ? `there is no ${path}`
      : `there is neither a device '${written}' nor a socket ${path}`;
  }
  return stats.isSocket() ? `nobody listens at ${path}` : `${path} is no socket`;
}

function isSocket(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isSocket() ?? false;
}
