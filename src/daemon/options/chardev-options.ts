/** Character devices and monitors as --chardev and --monitor write them (QEMU: qapi/char.json, qapi/control.json). */
import { isIPv4 } from 'node:net';
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { choice, declare, struct, variants } from '../../qmp/qapi.js';
import type { SocketAddress } from '../../qmp/socket-chardev.js';

export const chardevOptions = declare((s) =>
  variants('backend', [
    struct({
      backend: z.literal('socket'),
      id: s.str,
      path: s.str.optional(),
      host: s.str.optional(),
      port: s.uint16.optional(),
      server: s.bool.optional(),
      wait: s.bool.optional(),
    }),
  ]),
);

type ChardevOptions = z.output<typeof chardevOptions.json>;

/** Options of --chardev that are written as a bare word, such as `server` or `nowait`. */
export const chardevFlags = ['server', 'wait'];

export interface ChardevRequest {
  readonly id: string;
  readonly address: SocketAddress;
  readonly server: boolean;
  /** Whether start-up goes on only when a client has connected. */
  readonly wait: boolean;
}

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toChardevRequest(options: ChardevOptions): ChardevRequest {
  const { id, server = false, wait } = options;
  if (!server && wait !== undefined) {
    throw invalid("'wait' option is incompatible with socket in client connect mode");
  }
  return { id, address: socketAddress(options), server, wait: server && (wait ?? true) };
}

function socketAddress({ path, host, port }: ChardevOptions): SocketAddress {
  if ((path === undefined) === (host === undefined)) {
    throw invalid("One of 'path' or 'host' option required.");
  }
  if (path !== undefined) {
    return { type: 'unix', path };
  }
  if (port === undefined) {
    throw invalid('chardev: socket: no port given');
  }
  if (!isLoopback(host!)) {
    throw new VduseError('NOT_SUPPORTED', `chardev: socket: host '${host}' is not a loopback address`, {
      hint: 'a monitor has no password; use path=, or 127.0.0.1 and a tunnel',
    });
  }
  return { type: 'inet', host: host!, port };
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
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
