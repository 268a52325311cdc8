/** Why a socket can't be listened at, in the system's words, and what to do about it. */
import { dirname } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import { errorMessage } from './errors.js';

/** The system's text for an error of a call, without the call and the path that Node adds. */
export function systemReason(error: unknown): string {
  return systemError(error)?.[1] ?? errorMessage(error);
}

/** For the options of an error; `place` is a path or a TCP port. */
export function listenHint(place: string | number | undefined, error: unknown): { readonly hint?: string } {
  const name = systemError(error)?.[0] ?? '';
  const hint = typeof place === 'number' ? portHints[name]?.(place) : pathHints[name]?.(dirname(place ?? ''));
  return place === undefined || hint === undefined ? {} : { hint };
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

/** Name and text. Node's errors have a negative number, ours a positive one. */
function systemError(error: unknown): [string, string] | undefined {
  const errno = error instanceof Error && 'errno' in error ? error.errno : undefined;
  return typeof errno === 'number' ? getSystemErrorMap().get(-Math.abs(errno)) : undefined;
}
