/** Where exports have their control sockets: one QMP monitor each, at /run/vduse/NAME.sock. */
import { accessSync, constants, lstatSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { errorMessage, VduseError } from '../../base/errors.js';

/** sockaddr_un has room for 107 bytes and the end of the text. */
const PATH_BYTES_MAX = 107;

/** VDUSE_RUN_DIR is for users who may serve devices without being root, and for tests. */
export function runDirectory(): string {
  return process.env['VDUSE_RUN_DIR'] ?? '/run/vduse';
}

export function controlSocketPath(name: string): string {
  return join(runDirectory(), `${name}.sock`);
}

/** The longest device name whose control socket has a path that the kernel takes. */
export function controlNameBytesMax(): number {
  return PATH_BYTES_MAX - Buffer.byteLength(controlSocketPath(''));
}

/** Makes the directory. Throws PERMISSION_DENIED where it can't be made, or others may change what is in it. */
export function prepareRunDirectory(): void {
  const path = runDirectory();
  try {
    mkdirSync(path, { recursive: true, mode: 0o700 });
  } catch (error) {
    throw unusable(`cannot make ${path} for the control socket: ${errorMessage(error)}`, error);
  }
  checkRunDirectory();
}

/** Throws what prepareRunDirectory would, without making the directory. */
export function checkRunDirectory(): void {
  const path = runDirectory();
  const stats = lstatSync(path, { throwIfNoEntry: false });
  try {
    accessSync(stats === undefined ? dirname(path) : path, constants.W_OK);
  } catch (error) {
    throw unusable(`cannot write to ${path}, where the control socket goes: ${errorMessage(error)}`, error);
  }
  if (stats === undefined) {
    return;
  }
  const mine = stats.uid === process.geteuid?.() || stats.uid === 0;
  if (!stats.isDirectory() || !mine || (stats.mode & 0o022) !== 0) {
    throw new VduseError('PERMISSION_DENIED', `${path}: other users may put files there`, {
      hint: `Whoever reaches a control socket controls the disk: chown root ${path} && chmod 700 ${path}`,
    });
  }
}

function unusable(message: string, cause: unknown): VduseError {
  return new VduseError('PERMISSION_DENIED', message, {
    cause,
    hint: 'Run as root, or set VDUSE_RUN_DIR to a directory of your own.',
  });
}
