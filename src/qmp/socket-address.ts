/** Where sockets listen or connect to: in QEMU's words for people, and in Node's for the system. */

import { once } from 'node:events';
import { lstatSync, unlinkSync } from 'node:fs';
import { createConnection, type Server, Socket } from 'node:net';
import { dirname } from 'node:path';
import { VduseError } from '../base/errors.js';
import { listenHint, systemReason } from '../base/socket-errors.js';
import { connectUnix, UnixListener } from '../native/unix-socket.js';

export type SocketAddress =
  /** A path, or the name of an abstract socket after a NUL byte. */
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: number }
  /** A socket that the process was started with: one that listens, or a connection. */
  | { readonly type: 'fd'; readonly fd: number };

/** sockaddr_un has room for 107 bytes and the end of the text. */
const UNIX_PATH_BYTES_MAX = 107;

function isAbstract(path: string): boolean {
  return path.startsWith('\0');
}

/** Node fills abstract names up with NUL bytes, which makes other names of them; ours are as long as they are. */
function toAtName(path: string): string {
  return `@${path.slice(1)}`;
}

/** QEMU's description, such as `unix:/run/qmp.sock`. */
export function describeAddress(address: SocketAddress): string {
  switch (address.type) {
    case 'unix': {
      return isAbstract(address.path)
        ? `unix:${address.path.slice(1)},abstract=on,tight=on`
        : `unix:${address.path}`;
    }
    case 'inet':
      return `tcp:${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
    case 'fd':
      return `fd:${address.fd}`;
  }
}

/** Throws what the system says, and BUSY when somebody listens at the path already. */
export async function listenAt(server: Server, address: SocketAddress): Promise<void> {
  try {
    switch (address.type) {
      case 'unix':
        if (isAbstract(address.path)) {
          server.listen({ fd: new UnixListener(toAtName(address.path)).fd });
        } else {
          await claimPath(address.path);
          listenPrivately(server, address.path);
        }
        break;
      case 'inet':
        server.listen(address.port, address.host);
        break;
      case 'fd':
        server.listen({ fd: address.fd });
        break;
    }
    await once(server, 'listening');
  } catch (error) {
    throw error instanceof VduseError ? error : cannotListen(address, error);
  }
}

/** A connection, half-open when the other side ends its own half. Throws what the system says. */
export async function connectTo(address: SocketAddress): Promise<Socket> {
  try {
    if (address.type === 'fd') {
      return new Socket({ fd: address.fd, allowHalfOpen: true, readable: true, writable: true });
    }
    if (address.type === 'unix' && isAbstract(address.path)) {
      const fd = connectUnix(toAtName(address.path));
      return new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
    }
    const where =
      address.type === 'unix' ? { path: address.path } : { host: address.host, port: address.port };
    const socket = createConnection({ ...where, allowHalfOpen: true });
    await once(socket, 'connect');
    return socket;
  } catch (error) {
    throw error instanceof VduseError ? error : cannotConnect(address, error);
  }
}

function cannotListen(address: SocketAddress, error: unknown): VduseError {
  const place = address.type === 'inet' ? address.port : address.type === 'unix' ? address.path : undefined;
  const message = `Failed to bind socket to ${nameOf(address)}: ${capitalized(systemReason(error))}`;
  return new VduseError('SYSTEM_CALL', message, { cause: error, hint: listenHint(place, error) });
}

function cannotConnect(address: SocketAddress, error: unknown): VduseError {
  const message = `Failed to connect to '${nameOf(address)}': ${capitalized(systemReason(error))}`;
  return new VduseError('SYSTEM_CALL', message, {
    cause: error,
    hint: 'Nobody may listen there: start who does first, add reconnect=SECONDS, or listen yourself with server=on.',
  });
}

function nameOf(address: SocketAddress): string {
  switch (address.type) {
    case 'unix':
      return address.path.replaceAll('\0', '@');
    case 'inet':
      return `${address.host}:${address.port}`;
    case 'fd':
      return `fd ${address.fd}`;
  }
}

/** Whoever reaches the socket may open files as this process: nobody but its user may, from the first moment on. */
function listenPrivately(server: Server, path: string): void {
  const umask = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(umask);
  }
}

/** Removes a socket that a process left behind. Throws when it is something else, or somebody listens at it. */
async function claimPath(path: string): Promise<void> {
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    throw new VduseError('INVALID_ARGUMENT', `UNIX socket path '${path}' is too long`, {
      hint: `Path must be less than ${UNIX_PATH_BYTES_MAX + 1} bytes`,
    });
  }
  // libuv tells a missing directory as a lack of permission.
  lstatSync(dirname(path));
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return;
  }
  if (!found.isSocket()) {
    throw new VduseError('ALREADY_EXISTS', `Failed to bind socket to ${path}: a file is in the way`, {
      hint: 'it is not a socket, so it is not removed',
    });
  }
  if (await isListening(path)) {
    throw new VduseError('BUSY', `Failed to bind socket to ${path}: another process listens there`, {
      hint: `Choose another path, or end that process: \`ss -xap src ${path}\` names it.`,
    });
  }
  unlinkSync(path);
}

async function isListening(path: string): Promise<boolean> {
  const probe = createConnection(path);
  try {
    await once(probe, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    probe.destroy();
  }
}

/** As QEMU writes it. */
function capitalized(text: string): string {
  return text[0].toUpperCase() + text.slice(1);
}
