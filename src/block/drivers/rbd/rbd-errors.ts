/** What Ceph's errors mean for whoever opens an image. No text of these ever holds a key. */
import { VduseError } from '../../../base/errors.js';
import { describeErrno, Errno } from '../../../native/errno.js';
import type { RbdNodeOptions } from '../../node.js';

/** Beside what Node's table of errors says of it: librados gives it when a client was blocklisted. */
const ESHUTDOWN = 108;

export function imageName(options: RbdNodeOptions): string {
  const { pool, namespace = '', image, snapshot } = options;
  return `${pool}/${namespace === '' ? '' : `${namespace}/`}${image}${snapshot === undefined ? '' : `@${snapshot}`}`;
}

function userName(options: RbdNodeOptions): string {
  return `client.${options.user ?? 'admin'}`;
}

function reason(result: number): string {
  if (result === -ESHUTDOWN) {
    return 'the cluster has shut this client out (it is blocklisted)';
  }
  const { name, text } = describeErrno(-result);
  return `${text} (${name})`;
}

/** An error of connecting to the cluster. */
export function connectError(options: RbdNodeOptions, result: number, timeoutS: number): VduseError {
  const what = `cannot connect to the Ceph cluster of '${imageName(options)}'`;
  switch (-result) {
    case Errno.ETIMEDOUT:
      return new VduseError('TIMEOUT', `${what}: no monitor answered within ${timeoutS} s`, {
        hint: "Check that the monitors run, that 'mon host' in ceph.conf, or server, names them, and the key.",
      });
    case Errno.EACCES:
    case Errno.EPERM:
      return new VduseError('PERMISSION_DENIED', `${what}: it refuses ${userName(options)} or its key`, {
        hint: `Compare the key with that of 'ceph auth get ${userName(options)}'.`,
      });
    case Errno.ENOENT:
      return new VduseError(
        'NOT_FOUND',
        `${what}: its configuration has no monitor, or no key for ${userName(options)}`,
        {
          hint: 'Give the monitors in ceph.conf or as server, and the key in a keyring or as key-secret.',
        },
      );
    case Errno.EINVAL:
      return new VduseError(
        'INVALID_ARGUMENT',
        `${what}: its configuration names no monitor, or the key is none`,
        { hint: "Check 'mon host' in ceph.conf, or server, and the key." },
      );
    default:
      return new VduseError('SYSTEM_CALL', `${what}: ${reason(result)}`);
  }
}

/** An error of a step with the connected cluster. */
export function rbdError(options: RbdNodeOptions, doing: string, result: number): VduseError {
  const name = imageName(options);
  const what = `cannot ${doing} '${name}'`;
  switch (-result) {
    case Errno.ENOENT:
      return new VduseError('NOT_FOUND', `${what}: ${missing(options, doing)}`, {
        hint: `'rbd ls ${options.pool}' lists the images that there are.`,
      });
    case Errno.EACCES:
    case Errno.EPERM:
      return new VduseError('PERMISSION_DENIED', `${what}: ${userName(options)} may not do that`, {
        hint: `Give it the rights: ceph auth caps ${userName(options)} mon 'profile rbd' osd 'profile rbd pool=${options.pool}'`,
      });
    case Errno.EEXIST:
      return new VduseError('ALREADY_EXISTS', `${what}: there is an image of this name`, {
        hint: `Remove it before, if nobody needs it: rbd rm ${name}`,
      });
    case Errno.EROFS:
      return new VduseError('IMAGE_READ_ONLY', `${what}: ${reason(result)}`);
    case Errno.ETIMEDOUT:
      return new VduseError('TIMEOUT', `${what}: the cluster did not answer in time`, {
        hint: "'ceph -s' tells how the cluster is.",
      });
    default:
      return new VduseError('SYSTEM_CALL', `${what}: ${reason(result)}`);
  }
}

function missing(options: RbdNodeOptions, doing: string): string {
  if (doing === 'open the pool of') {
    return `there is no pool '${options.pool}'`;
  }
  return options.snapshot === undefined ? 'there is no such image' : 'there is no such image or snapshot';
}
