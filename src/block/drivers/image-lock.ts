/**
 * Image locking as QEMU does it, so that each side sees the other's use. A user of an image holds shared OFD
 * locks: on byte 100 + p for every permission p that it uses, and on byte 200 + p for every permission that it
 * grants to nobody else. It then tests for the opposite: somebody who holds back what we use, or uses what we
 * hold back. Two users that start at once both see the other; none wins silently.
 */
import { VduseError } from '../../base/errors.js';
import { Errno } from '../../native/errno.js';
import { setOfdLock, testOfdLock } from '../../native/fd.js';
import { systemCallError } from '../../native/ffi.js';
import type { LockingMode } from '../node.js';

const permissionBase = 100;
const unsharedBase = 200;

const Permission = { consistentRead: 0, write: 1, resize: 3 } as const;
type PermissionName = keyof typeof Permission;

const readerUses: readonly PermissionName[] = ['consistentRead'];
const writerUses: readonly PermissionName[] = ['consistentRead', 'write', 'resize'];
/** Reader or writer, nobody else may change the image under us. */
const heldBack: readonly PermissionName[] = ['write', 'resize'];

export interface ImageLockRequest {
  readonly fd: number;
  readonly filename: string;
  readonly writable: boolean;
  readonly mode: LockingMode;
}

function locked(request: ImageLockRequest, permission: PermissionName): VduseError {
  return new VduseError(
    'IMAGE_LOCKED',
    `cannot open '${request.filename}' for ${request.writable ? 'writing' : 'reading'}: another opener holds its "${permission}" lock`,
    {
      hint: `Is another process (QEMU, qemu-img, vduse) using the image? 'fuser -v ${request.filename}' tells.`,
    },
  );
}

/**
 * Locks the image for as long as `fd` is open. Throws IMAGE_LOCKED when another opener's use conflicts; the
 * caller then closes the descriptor, which drops what was locked.
 */
export function lockImage(request: ImageLockRequest): void {
  if (takeLocks(request)) {
    testLocks(request);
  }
}

/**
 * Locks the image for another descriptor of ours, which is to take the place of the one that has the locks: at no
 * moment have neither. Until it is settled the new one holds what either needs. Throws IMAGE_LOCKED, and then all is
 * as before.
 */
export function beginLockHandover(from: ImageLockRequest, to: ImageLockRequest): LockHandover {
  const both = { ...to, writable: from.writable || to.writable };
  const supported = takeLocks(both);
  unlockImage(from.fd);
  try {
    if (supported) {
      testLocks(both);
    }
  } catch (error) {
    takeLocks(from);
    throw error;
  }
  return {
    finish: () => {
      if (!to.writable) {
        unlock(to.fd, permissionBase + Permission.write);
        unlock(to.fd, permissionBase + Permission.resize);
      }
    },
    goBack: () => void takeLocks(from),
  };
}

/** The descriptor that is not to go on is closed afterwards. */
export interface LockHandover {
  finish(): void;
  goBack(): void;
}

/** False: there are no locks here, or they are not wanted. */
function takeLocks({ fd, filename, writable, mode }: ImageLockRequest): boolean {
  if (mode === 'off') {
    return false;
  }
  for (const [base, permissions] of [
    [permissionBase, writable ? writerUses : readerUses],
    [unsharedBase, heldBack],
  ] as const) {
    for (const permission of permissions) {
      const result = setOfdLock(fd, 'shared', { start: base + Permission[permission], length: 1 });
      if (result === -Errno.EAGAIN) {
        throw locked({ fd, filename, writable, mode }, permission);
      }
      if (result !== 0) {
        if (mode === 'auto') {
          return false;
        }
        throw systemCallError('fcntl(F_OFD_SETLK)', -result, filename);
      }
    }
  }
  return true;
}

function testLocks(request: ImageLockRequest): void {
  for (const permission of request.writable ? writerUses : readerUses) {
    testLock(request, unsharedBase, permission);
  }
  for (const permission of heldBack) {
    testLock(request, permissionBase, permission);
  }
}

/** Drops all locks of a descriptor. */
function unlockImage(fd: number): void {
  setOfdLock(fd, 'none', { start: permissionBase, length: 2 * (unsharedBase - permissionBase) });
}

function unlock(fd: number, start: number): void {
  setOfdLock(fd, 'none', { start, length: 1 });
}

/** A shared lock of somebody else is what stands in an exclusive one's way; our own never does. */
function testLock(request: ImageLockRequest, base: number, permission: PermissionName): void {
  if (testOfdLock(request.fd, { start: base + Permission[permission], length: 1 }) === 1) {
    throw locked(request, permission);
  }
}
