/** Where an NBD server is, as QEMU's SocketAddress says it, and in the forms that others want. */
import { lookup } from 'node:dns/promises';
import { isIP } from 'node:net';
import { errorMessage, VduseError } from '../../../base/errors.js';
import { encodeInetAddress, encodeUnixAddress } from '../../../native/stream-socket.js';

export type NbdServerAddress =
  /** A path, or a name of the abstract namespace behind a NUL. */
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: number };

/** Addresses of one name that are tried. */
const addressesMax = 16;

/** Throws NOT_FOUND for a host that has no address, INVALID_ARGUMENT for a path that can't be one. */
export async function resolveAddress(server: NbdServerAddress): Promise<readonly Uint8Array[]> {
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

/** The NBD URI of an export ("NBD URI specification"), as QEMU names its nodes. */
export function nbdUri(server: NbdServerAddress, exportName: string): string {
  const name = exportName === '' ? '' : `/${exportName}`;
  if (server.type === 'unix') {
    return `nbd+unix://${name}?socket=${server.path.replace('\0', '@')}`;
  }
  const host = server.host.includes(':') ? `[${server.host}]` : server.host;
  return `nbd://${host}:${server.port}${name}`;
}
