/** From what an export failed with to what the protocol can say ("Error values"). */
import { Command, CommandFlag, NbdErrno } from '../base/nbd-protocol.js';

/** Linux's numbers, the same on x86-64 and arm64, and what each becomes on the wire. Everything else is NBD_EIO. */
const wireErrnos = new Map<number, number>([
  [1 /* EPERM */, NbdErrno.EPERM],
  [12 /* ENOMEM */, NbdErrno.ENOMEM],
  [13 /* EACCES */, NbdErrno.EPERM],
  [22 /* EINVAL */, NbdErrno.EINVAL],
  [27 /* EFBIG */, NbdErrno.ENOSPC],
  [28 /* ENOSPC */, NbdErrno.ENOSPC],
  [30 /* EROFS */, NbdErrno.EPERM],
  [75 /* EOVERFLOW */, NbdErrno.EOVERFLOW],
  [95 /* EOPNOTSUPP */, NbdErrno.ENOTSUP],
  [108 /* ESHUTDOWN */, NbdErrno.ESHUTDOWN],
  [122 /* EDQUOT */, NbdErrno.ENOSPC],
]);

/** The errno of anything thrown, positive; undefined if it has none. Node's errors carry theirs negative. */
export function errnoOf(error: unknown): number | undefined {
  if (typeof error !== 'object' || error === null || !('errno' in error)) {
    return undefined;
  }
  const { errno } = error;
  return typeof errno === 'number' && errno !== 0 ? Math.abs(errno) : undefined;
}

/**
 * The error value for what an export failed with. NBD_ENOTSUP answers only a fast write-zeroes, and NBD_EOVERFLOW
 * only commands without payload; elsewhere a client would not expect them, and NBD_EINVAL says the same.
 */
export function toWireErrno(error: unknown, command: number, flags: number): number {
  const errno = wireErrnos.get(errnoOf(error) ?? 0) ?? NbdErrno.EIO;
  if (errno === NbdErrno.ENOTSUP) {
    const isFastZero = command === Command.WRITE_ZEROES && (flags & CommandFlag.FAST_ZERO) !== 0;
    return isFastZero ? errno : NbdErrno.EINVAL;
  }
  if (errno === NbdErrno.EOVERFLOW) {
    const hasPayload = command === Command.READ || command === Command.WRITE;
    return hasPayload ? NbdErrno.EINVAL : errno;
  }
  return errno;
}

const names = new Map<number, string>(Object.entries(NbdErrno).map(([name, value]) => [value, name]));

/** The symbol of an error value that goes over the wire. */
export function wireErrnoName(errno: number): string {
  return names.get(errno) ?? `error ${errno}`;
}
