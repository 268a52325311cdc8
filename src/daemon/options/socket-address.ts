/** Addresses of sockets as QEMU writes them (QEMU: qapi/sockets.json): SocketAddress, and its older form. */
import { isIPv4 } from 'node:net';
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { type Scalars, struct, variants } from '../../qmp/qapi.js';
import type { SocketAddress } from '../../qmp/socket-address.js';

const inetMembers = (s: Scalars) => ({
  host: s.str,
  port: s.str,
  numeric: s.bool.optional(),
  to: s.uint16.optional(),
  ipv4: s.bool.optional(),
  ipv6: s.bool.optional(),
  'keep-alive': s.bool.optional(),
  mptcp: s.bool.optional(),
});

const unixMembers = (s: Scalars) => ({
  path: s.str,
  abstract: s.bool.optional(),
  tight: s.bool.optional(),
});

const fdMembers = (s: Scalars) => ({ str: s.str });

/** SocketAddress: `type` and the members beside it. */
export const socketAddressOptions = (s: Scalars) =>
  variants('type', [
    struct({ type: z.literal('inet'), ...inetMembers(s) }),
    struct({ type: z.literal('unix'), ...unixMembers(s) }),
    struct({ type: z.literal('fd'), ...fdMembers(s) }),
  ]);

/** SocketAddressLegacy: the members in `data`. */
export const legacySocketAddressOptions = (s: Scalars) =>
  variants('type', [
    struct({ type: z.literal('inet'), data: struct(inetMembers(s)) }),
    struct({ type: z.literal('unix'), data: struct(unixMembers(s)) }),
    struct({ type: z.literal('fd'), data: struct(fdMembers(s)) }),
  ]);

export type SocketAddressOptions = z.output<ReturnType<typeof socketAddressOptions>>;
export type LegacySocketAddressOptions = z.output<ReturnType<typeof legacySocketAddressOptions>>;

/** The older form as the newer one. */
export function fromLegacyAddress(address: LegacySocketAddressOptions): SocketAddressOptions {
  switch (address.type) {
    case 'inet':
      return { type: address.type, ...address.data };
    case 'unix':
      return { type: address.type, ...address.data };
    case 'fd':
      return { type: address.type, ...address.data };
  }
}

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toSocketAddress(address: SocketAddressOptions): SocketAddress {
  switch (address.type) {
    case 'inet':
      return { type: 'inet', host: address.host, port: toPort(address.port) };
    case 'unix':
      return { type: 'unix', path: unixPath(address) };
    case 'fd':
      return { type: 'fd', fd: toFd(address.str) };
  }
}

function unixPath(address: Extract<SocketAddressOptions, { type: 'unix' }>): string {
  if (address.abstract !== true) {
    return address.path;
  }
  if (address.tight === false) {
    throw new VduseError('NOT_SUPPORTED', 'abstract names with tight=off are not supported', {
      hint: 'tight=on, the default, is a name that is as long as it is written',
    });
  }
  return `\0${address.path}`;
}

const PORT_MAX = 0xffff;

function toPort(text: string): number {
  const port = Number(text);
  if (!/^\d+$/.test(text) || port > PORT_MAX) {
    throw invalid(`port '${text}' is not a number from 0 to ${PORT_MAX}`);
  }
  return port;
}

/** Standard input, output and error are not for sockets. */
const FD_MIN = 3;

function toFd(text: string): number {
  const fd = Number(text);
  if (!/^\d+$/.test(text)) {
    throw invalid(`file descriptor named '${text}' has not been found`);
  }
  if (!Number.isSafeInteger(fd) || fd < FD_MIN || fd > 0x7fff_ffff) {
    throw invalid(`file descriptor ${text} can't be a socket that was passed on`);
  }
  return fd;
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}
