import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';

/** The errno values the data path answers with, positive, as Linux numbers them on x86-64 and arm64. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  ENOSPC: 28,
  EROFS: 30,
  ENOSYS: 38,
  ENODATA: 61,
  ETIME: 62,
  ENOTSOCK: 88,
  EPROTOTYPE: 91,
  EOPNOTSUPP: 95,
  ECONNRESET: 104,
  ENOBUFS: 105,
  ESHUTDOWN: 108,
  ETIMEDOUT: 110,
  ECANCELED: 125,
} as const;

/** Two symbols share a number here and there (EWOULDBLOCK and EAGAIN): those above are the ones we speak of. */
const names = new Map<number, string>(
  [...Object.entries(constants.errno), ...Object.entries(Errno)].map(([name, value]) => [value, name]),
);

/** The symbol and the sentence for a positive errno. */
export function describeErrno(errno: number): { name: string; text: string } {
  const known = getSystemErrorMap().get(-errno);
  const name = names.get(errno) ?? `errno ${errno}`;
  return { name, text: known?.[1] ?? name };
}
