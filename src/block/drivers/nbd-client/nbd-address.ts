/** Where an NBD server is, as QEMU's SocketAddress says it, and in the forms that others want. */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { errorMessage, VduseError } from '../../../base/errors.js';
import { describeErrno, Errno } from '../../../native/errno.js';
import { adoptConnection, encodeInetAddress, encodeUnixAddress } from '../../../native/stream-socket.js';

export type NbdServerAddress =
  /** A path, or a name of the abstract namespace behind a NUL. */
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: number }
  /** A connected socket that this process was started with. */
  | { readonly type: 'fd'; readonly fd: number };

/** Addresses of one name that are tried. */
const addressesMax = 16;

/**
 * What can be connected to, as often as it takes: nothing for a descriptor. Throws NOT_FOUND for a host that has no
 * address, INVALID_ARGUMENT for a path that can't be one.
 */
export async function resolveAddress(server: NbdServerAddress): Promise<readonly Uint8Array[]> {
  if (server.type === 'fd') {
    return [];
  }
  if (server.type === 'unix') {
    const encoded = encodeUnixAddress(server.path);
    if (encoded === undefined) {
      throw new VduseError('INVALID_ARGUMENT', `UNIX socket path '${server.path}' is too long, or empty`);
    }
    return [encoded];
  }
  const { host, port } = server;
  if (isIP(host) !== 0) {
    return [encodeInetAddress(host, port)];
  }
  try {
    const found = await lookup(host, { all: true });
    return found.slice(0, addressesMax).map(({ address }) => encodeInetAddress(address, port));
  } catch (error) {
    throw new VduseError('NOT_FOUND', `cannot find the NBD server '${host}': ${errorMessage(error)}`, {
      hint: 'Check the name, or give an IP address.',
      cause: error,
    });
  }
}

/**
 * The connection that a descriptor is, as a descriptor of our own: the number stays taken, so that nothing of ours can
 * come to have it and be handed over by mistake. Throws INVALID_ARGUMENT.
 */
export function adoptDescriptor(fd: number): number {
  const adopted = adoptConnection(fd);
  if (adopted >= 0) {
    return adopted;
  }
  const hint = 'Start the daemon with a connected socket under this number.';
  switch (-adopted) {
    case Errno.EBADF:
      throw new VduseError('INVALID_ARGUMENT', `File descriptor '${fd}' is not open`, { hint });
    case Errno.ENOTSOCK:
      throw new VduseError('INVALID_ARGUMENT', `File descriptor '${fd}' is not a socket`, { hint });
    default:
      throw new VduseError(
        'INVALID_ARGUMENT',
        `File descriptor '${fd}' is not a connection: ${describeErrno(-adopted).text}`,
        { hint },
      );
  }
}

/** The NBD URI of an export ("NBD URI specification"), as QEMU names its nodes; of a descriptor, for people. */
export function nbdUri(server: NbdServerAddress, exportName: string): string {
  const name = exportName === '' ? '' : `/${exportName}`;
  if (server.type === 'unix') {
    return `nbd+unix://${name}?socket=${server.path.replace('\0', '@')}`;
  }
  if (server.type === 'fd') {
    return `nbd+fd://${server.fd}${name}`;
  }
  const host = server.host.includes(':') ? `[${server.host}]` : server.host;
  return `nbd://${host}:${server.port}${name}`;
}
