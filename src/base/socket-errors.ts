/** Why a socket can't be listened at or connected to, in the system's words, and what to do about it. */
import { dirname } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import { errorMessage } from './errors.js';

/** The system's text for an error of a call, without the call and the path that Node adds. */
export function systemReason(error: unknown): string {
  return systemError(error)?.[1] ?? errorMessage(error);
}

/** The hint of an error; `place` is a path or a TCP port, undefined where it is neither. */
export function listenHint(place: string | number | undefined, error: unknown): string | undefined {
  if (place === undefined) {
    return undefined;
  }
  const name = systemError(error)?.[0] ?? '';
  return typeof place === 'number' ? portHints[name]?.(place) : pathHints[name]?.(dirname(place));
}

const pathHints: Readonly<Record<string, (directory: string) => string>> = {
  ENOENT: (directory) => `Make its directory: mkdir -p ${directory}`,
  EACCES: (directory) => `This user may not write to ${directory}: choose another path.`,
};

const portHints: Readonly<Record<string, (port: number) => string>> = {
  EADDRINUSE: (port) =>
    `Choose another port, or end who listens there: \`ss -ltnp sport = :${port}\` names it.`,
  EACCES: () => 'Only root listens at ports below 1024: choose another one.',
  EADDRNOTAVAIL: () => 'This machine has no such address: `ip address` shows what it has.',
};

/** The hint of an error, of a server that can't be reached. */
export function connectHint(error: unknown): string | undefined {
  return connectHints[systemError(error)?.[0] ?? ''];
}

const checkName = "Check the host's name, and that this machine can look names up.";
const checkNetwork = 'Check the address, the network and firewalls in between.';

const connectHints: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'Nobody listens there: check the address, and that the server runs.',
  ENOENT: 'There is no such socket: check the path, and that the server runs.',
  ENOTSOCK: 'It is no socket: check the path.',
  EACCES: "The socket is for others: run as the server's user, or change the socket's owner or mode.",
  EPROTO: 'Another protocol is spoken there, such as http in place of https: check the port.',
  EHOSTUNREACH: checkNetwork,
  ENETUNREACH: checkNetwork,
  ETIMEDOUT: checkNetwork,
  EAI_NONAME: checkName,
  EAI_AGAIN: checkName,
};

/** Name and text. Node's errors have a negative number, ours a positive one. */
function systemError(given: unknown): [string, string] | undefined {
  // A host of several addresses, none of which answers, has an error for each.
  const error: unknown = given instanceof AggregateError ? given.errors[0] : given;
  const errno = error instanceof Error && 'errno' in error ? error.errno : undefined;
  return typeof errno === 'number' ? getSystemErrorMap().get(-Math.abs(errno)) : undefined;
}
