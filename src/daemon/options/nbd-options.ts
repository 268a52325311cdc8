/** The NBD server as --nbd-server and nbd-server-start write it (QEMU: qapi/block-export.json). */
import type { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { declare, jsonScalars as s, struct } from '../../qmp/qapi.js';
import type { SocketAddress } from '../../qmp/socket-address.js';
import {
  fromLegacyAddress,
  isLoopback,
  legacySocketAddressOptions,
  socketAddressOptions,
  toSocketAddress,
} from './socket-address.js';

const common = (scalars: typeof s) => ({
  'tls-creds': scalars.str.optional(),
  'tls-authz': scalars.str.optional(),
  'max-connections': scalars.uint32.optional(),
});

/** NbdServerOptions. */
export const nbdServerOptions = declare((scalars) =>
  struct({ addr: socketAddressOptions(scalars), ...common(scalars) }),
);

/** The arguments of nbd-server-start. */
export const nbdServerStartArguments = struct({ addr: legacySocketAddressOptions(s), ...common(s) });

export interface NbdServerRequest {
  readonly address: SocketAddress;
  /** An object with TLS credentials. Clients must use TLS then. */
  readonly tlsCreds?: string;
  /** An object that says which clients may come. */
  readonly tlsAuthz?: string;
  /** Clients at once; 0 is as many as there can be. */
  readonly maxConnections?: number;
}

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toNbdServerRequest(options: z.output<typeof nbdServerOptions.json>): NbdServerRequest {
  const address = toSocketAddress(options.addr);
  const tlsCreds = options['tls-creds'];
  const tlsAuthz = options['tls-authz'];
  const maxConnections = options['max-connections'];
  if (tlsCreds === undefined && tlsAuthz !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', 'tls-authz without tls-creds would let everybody in', {
      hint: 'add tls-creds, or leave tls-authz out',
    });
  }
  if (tlsCreds === undefined && address.type === 'inet' && !isLoopback(address.host)) {
    throw new VduseError('NOT_SUPPORTED', `NBD server: host '${address.host}' is not a loopback address`, {
      hint: 'whoever reaches the server can read and write: add tls-creds, or use a Unix socket',
    });
  }
  return {
    address,
    ...(tlsCreds === undefined ? {} : { tlsCreds }),
    ...(tlsAuthz === undefined ? {} : { tlsAuthz }),
    ...(maxConnections === undefined ? {} : { maxConnections }),
  };
}

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toNbdServerStart(options: z.output<typeof nbdServerStartArguments>): NbdServerRequest {
  return toNbdServerRequest({ ...options, addr: fromLegacyAddress(options.addr) });
}

/** The arguments of nbd-server-add. */
export const nbdServerAddArguments = struct({
  device: s.str,
  name: s.str.optional(),
  description: s.str.optional(),
  writable: s.bool.optional(),
  bitmap: s.str.optional(),
});
