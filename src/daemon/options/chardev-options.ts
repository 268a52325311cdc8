/** Character devices and monitors as --chardev and --monitor write them (QEMU: qapi/char.json, qapi/control.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { choice, compact, declare, jsonScalars as s, struct, variants } from '../../qmp/qapi.js';
import type { SocketAddress } from '../../qmp/socket-address.js';
import { identifierHint, isIdentifier } from '../identifier.js';
import {
  fromLegacyAddress,
  isLoopback,
  legacySocketAddressOptions,
  socketAddressOptions,
  toSocketAddress,
} from './socket-address.js';

export const chardevOptions = declare((s) =>
  variants('backend', [
    struct({ backend: z.literal('null'), id: s.str }),
    struct({
      backend: z.literal('socket'),
      id: s.str,
      addr: socketAddressOptions(s).optional(),
      path: s.str.optional(),
      abstract: s.bool.optional(),
      tight: s.bool.optional(),
      host: s.str.optional(),
      port: s.str.optional(),
      ipv4: s.bool.optional(),
      ipv6: s.bool.optional(),
      fd: s.str.optional(),
      server: s.bool.optional(),
      wait: s.bool.optional(),
      nodelay: s.bool.optional(),
      reconnect: s.uint32.optional(),
      telnet: s.bool.optional(),
      websocket: s.bool.optional(),
    }),
  ]),
);

type ChardevOptions = z.output<typeof chardevOptions.json>;
type SocketOptions = Extract<ChardevOptions, { backend: 'socket' }>;

/** The arguments of chardev-add. */
export const chardevAddArguments = struct({
  id: s.str,
  backend: variants('type', [
    struct({ type: z.literal('null'), data: struct({}) }),
    struct({
      type: z.literal('socket'),
      data: struct({
        addr: legacySocketAddressOptions(s),
        server: s.bool.optional(),
        wait: s.bool.optional(),
        nodelay: s.bool.optional(),
        telnet: s.bool.optional(),
        websocket: s.bool.optional(),
        reconnect: s.uint32.optional(),
      }),
    }),
  ]),
});

/** Options of --chardev that are written as a bare word, such as `server` or `nowait`. */
export const chardevFlags = ['server', 'wait', 'nodelay', 'telnet', 'websocket'];

export type ChardevRequest = SocketChardevRequest | { readonly backend: 'null'; readonly id: string };

export interface SocketChardevRequest {
  readonly backend?: 'socket';
  readonly id: string;
  readonly address: SocketAddress;
  readonly server: boolean;
  /** Whether start-up goes on only when a client has connected. */
  readonly wait: boolean;
  /** Of a client: how long until it tries again after the connection ended; 0: it does not. */
  readonly reconnectMs?: number;
}

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toChardevRequest(options: ChardevOptions): ChardevRequest {
  if (!isIdentifier(options.id)) {
    throw new VduseError('INVALID_ARGUMENT', "Parameter 'id' expects an identifier", {
      hint: identifierHint,
    });
  }
  return options.backend === 'null' ? options : toSocketRequest(options);
}

/** Its defaults are others: a server, which waits for nobody. Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toChardevAdd({ id, backend }: z.output<typeof chardevAddArguments>): ChardevRequest {
  if (backend.type === 'null') {
    return { backend: 'null', id };
  }
  const { addr, server = true, wait = server ? false : undefined, ...more } = backend.data;
  const address = fromLegacyAddress(addr);
  return toSocketRequest({ backend: 'socket', id, addr: address, server, ...compact({ wait }), ...more });
}

function toSocketRequest(options: SocketOptions): SocketChardevRequest {
  const { id, server = false, wait, reconnect = 0 } = options;
  for (const protocol of ['telnet', 'websocket'] as const) {
    if (options[protocol] === true) {
      throw new VduseError('NOT_SUPPORTED', `chardev: socket: ${protocol} is not supported`, {
        hint: 'a monitor speaks QMP as it is',
      });
    }
  }
  if (!server && wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  if (server && reconnect > 0) {
    throw invalid("'reconnect' option is incompatible with socket in server listen mode");
  }
  const address = toAddress(options);
  if (address.type === 'fd' && reconnect > 0) {
    throw invalid("'reconnect' option is incompatible with 'fd'");
  }
  return {
    id,
    address,
    server,
    wait: server && (wait ?? true),
    ...(reconnect === 0 ? {} : { reconnectMs: reconnect * 1000 }),
  };
}

/** The address, written as one (`addr.`), or by members of its own, as --chardev had it first. */
function toAddress({ addr, path, abstract, tight, host, port, fd }: SocketOptions): SocketAddress {
  const given = [addr, path, host, fd].filter((one) => one !== undefined).length;
  if (given !== 1) {
    throw invalid(
      given === 0
        ? "One of 'path' or 'host' option required."
        : "Exactly one of 'path', 'fd' or 'host' required",
    );
  }
  if (path !== undefined) {
    return toSocketAddress({ type: 'unix', path, ...compact({ abstract, tight }) });
  }
  if (fd !== undefined) {
    return toSocketAddress({ type: 'fd', str: fd });
  }
  if (host !== undefined && port === undefined) {
    throw invalid('chardev: socket: no port given');
  }
  const address = toSocketAddress(addr ?? { type: 'inet', host: host!, port: port! });
  if (address.type === 'inet' && !isLoopback(address.host)) {
    throw new VduseError(
      'NOT_SUPPORTED',
      `chardev: socket: host '${address.host}' is not a loopback address`,
      {
        hint: 'a monitor has no password; use path=, or 127.0.0.1 and a tunnel',
      },
    );
  }
  return address;
}

export const monitorOptions = declare((s) =>
  struct({
    id: s.str.optional(),
    chardev: s.str,
    mode: choice('control', 'readline').optional(),
    pretty: s.bool.optional(),
  }),
);

export interface MonitorRequest {
  /** The id of its character device. */
  readonly chardev: string;
  readonly pretty?: boolean;
}

/** Throws NOT_SUPPORTED. */
export function toMonitorRequest(options: z.output<typeof monitorOptions.json>): MonitorRequest {
  if (options.mode === 'readline') {
    throw new VduseError('NOT_SUPPORTED', 'Only QMP is supported', { hint: 'use mode=control' });
  }
  return { chardev: options.chardev, pretty: options.pretty ?? false };
}
