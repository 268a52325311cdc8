// Hot file: synchronous, no allocation, no throw.
/** From what the protocol says of a failure to Linux's numbers ("Error values"). */
import { NbdErrno } from '../../../base/nbd-protocol.js';
import { Errno } from '../../../native/errno.js';

/** Returns a negative errno. What is not in the protocol is an I/O error. */
export function fromWireErrno(error: number): number {
  switch (error) {
    case NbdErrno.EPERM:
      return -Errno.EPERM;
    case NbdErrno.ENOMEM:
      return -Errno.ENOMEM;
    case NbdErrno.EINVAL:
      return -Errno.EINVAL;
    case NbdErrno.ENOSPC:
      return -Errno.ENOSPC;
    case NbdErrno.ENOTSUP:
      return -Errno.EOPNOTSUPP;
    case NbdErrno.ESHUTDOWN:
      return -Errno.ESHUTDOWN;
    default:
      return -Errno.EIO;
  }
}
