/** File descriptors: open, close, eventfds, and what an image's block driver asks of a file. */
import { Errno } from './errno.js';
import { addressOf, bindLibc, check, errno, libcCalls, viewMemory } from './ffi.js';

export const OpenFlag = {
  O_RDONLY: 0,
  O_WRONLY: 1,
  O_RDWR: 2,
  O_CREAT: 0o100,
  O_EXCL: 0o200,
  O_NONBLOCK: 0o4000,
  /** arm64 numbers these two the other way round from x86-64. */
  O_DIRECT: process.arch === 'arm64' ? 0o200000 : 0o40000,
  O_CLOEXEC: 0o2000000,
} as const;

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

export function openFile(path: string, flags: number, mode = 0): number {
  return check(libcCalls.open(path, flags | OpenFlag.O_CLOEXEC, mode), 'open', path);
}

/**
 * Closes a descriptor. Linux frees it even when close() reports an error, so none is thrown: a late write
 * error was the flush's to report. Not by Node, which on a worker thread warns of descriptors that it did
 * not open.
 */
export function closeFd(fd: number): void {
  libcCalls.close(fd);
}

const F_DUPFD_CLOEXEC = 1030;

/** Another descriptor of the same open file, closed on exec. */
export function duplicateFd(fd: number): number {
  return check(libcCalls.fcntlNumber(fd, F_DUPFD_CLOEXEC, 0), 'fcntl(F_DUPFD_CLOEXEC)', `${fd}`);
}

const F_GETFL = 3;
const F_SETFL = 4;

export function setNonBlocking(fd: number): void {
  const flags = check(libcCalls.fcntlNumber(fd, F_GETFL, 0), 'fcntl(F_GETFL)', `${fd}`);
  check(libcCalls.fcntlNumber(fd, F_SETFL, flags | OpenFlag.O_NONBLOCK), 'fcntl(F_SETFL)', `${fd}`);
}

/** Makes a descriptor that is open one of another's open file, in one step: whoever uses its number meets no gap. */
export function replaceFd(target: number, source: number): void {
  check(libcCalls.dup3(source, target, OpenFlag.O_CLOEXEC), 'dup3', `${source}`);
}

/** A non-blocking eventfd with value 0. */
export function createEventFd(): number {
  return check(libcCalls.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), 'eventfd');
}

/** Adds one to an eventfd. Never blocks: a counter that is full has already woken its reader. */
export function signalEventFd(fd: number): void {
  libcCalls.eventfdWrite(fd, 1);
}

const drained = new Uint8Array(8);

/** Sets an eventfd back to 0. */
export function drainEventFd(fd: number): void {
  libcCalls.read(fd, drained, 8);
}

/** Reads once. Returns the count, 0 at the end, or a negative errno. */
export function readFd(fd: number, buffer: Uint8Array): number {
  const count = libcCalls.read(fd, buffer, buffer.byteLength);
  return count < 0 ? -errno() : count;
}

/** Writes once. Returns the count or a negative errno. */
export function writeFd(fd: number, buffer: Uint8Array): number {
  const count = libcCalls.write(fd, buffer, buffer.byteLength);
  return count < 0 ? -errno() : count;
}

/** One ioctl whose argument is a buffer, or null for none. Returns the result or a negative errno. */
export function ioctl(fd: number, request: number, argument: Uint8Array | null): number {
  const result = libcCalls.ioctlPointer(fd, request, argument);
  return result < 0 ? -errno() : result;
}

const BLKGETSIZE64 = 0x80081272;
const BLKSSZGET = 0x1268;
const BLKPBSZGET = 0x127b;
const BLKIOOPT = 0x1279;
const BLKROGET = 0x125e;

function blockIoctl32(fd: number, request: number): number {
  const value = new Uint32Array(1);
  check(libcCalls.ioctlPointer(fd, request, value), 'ioctl', `0x${request.toString(16)} of a block device`);
  return value[0];
}

export interface BlockDeviceGeometry {
  /** Bytes. */
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly optimalIoSize: number;
  readonly readOnly: boolean;
}

/** What the kernel says of an open block device. */
export function blockDeviceGeometry(fd: number): BlockDeviceGeometry {
  const size = new BigUint64Array(1);
  check(libcCalls.ioctlPointer(fd, BLKGETSIZE64, size), 'ioctl', 'BLKGETSIZE64');
  return {
    size: Number(size[0]),
    logicalBlockSize: blockIoctl32(fd, BLKSSZGET),
    physicalBlockSize: blockIoctl32(fd, BLKPBSZGET),
    optimalIoSize: blockIoctl32(fd, BLKIOOPT),
    readOnly: blockIoctl32(fd, BLKROGET) !== 0,
  };
}

const STATX_DIOALIGN = 0x2000;
const AT_EMPTY_PATH = 0x1000;
const SYS_STATX = process.arch === 'arm64' ? 291 : 332;

/**
 * The alignment that O_DIRECT wants of memory and of offsets, bytes; undefined where the kernel (before 6.1)
 * or the file system does not say.
 */
export function directIoAlignment(fd: number): { memory: number; offset: number } | undefined {
  // Explicit buffers: short typed arrays may live on the JavaScript heap, where their address can change.
  const buffer = new Uint32Array(new ArrayBuffer(256));
  const emptyPath = new Uint8Array(new ArrayBuffer(1));
  const result = libcCalls.syscall6(
    SYS_STATX,
    fd,
    addressOf(emptyPath),
    AT_EMPTY_PATH,
    STATX_DIOALIGN,
    addressOf(buffer),
    0,
  );
  // struct statx: stx_mask at 0, stx_dio_mem_align at 0x98, stx_dio_offset_align at 0x9c.
  const memory = buffer[0x98 / 4];
  const offset = buffer[0x9c / 4];
  if (result < 0 || (buffer[0] & STATX_DIOALIGN) === 0 || memory === 0 || offset === 0) {
    return undefined;
  }
  return { memory, offset };
}

const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_NOCOW_FL = 0x0080_0000;

/** Asks that a file that is still empty is not copied on write. Returns 0 or a negative errno. */
export function avoidCopyOnWrite(fd: number): number {
  // An int, whatever the number of the request says of its size.
  const flags = new Uint32Array(2);
  const result = libcCalls.ioctlPointer(fd, FS_IOC_GETFLAGS, flags);
  flags[0] |= FS_NOCOW_FL;
  return result < 0 || libcCalls.ioctlPointer(fd, FS_IOC_SETFLAGS, flags) < 0 ? -errno() : 0;
}

/** fallocate's mode bits. */
export const FallocateMode = { KEEP_SIZE: 1, PUNCH_HOLE: 2, ZERO_RANGE: 0x10 } as const;

/** Returns 0 or a negative errno. */
export function fallocate(fd: number, mode: number, offset: number, length: number): number {
  for (;;) {
    if (libcCalls.fallocate(fd, mode, offset, length) === 0) {
      return 0;
    }
    if (errno() !== Errno.EINTR) {
      return -errno();
    }
  }
}

const lseekCall = bindLibc<(fd: number, offset: number, whence: number) => number>('lseek', 'int64_t', [
  'int',
  'int64_t',
  'int',
]);
const whences = { data: 3, hole: 4 } as const;

/**
 * Where the file's next data, or its next hole, begins, from `offset` on: SEEK_DATA and SEEK_HOLE, which move the
 * file's own position. Returns a negative errno where there is none, ENXIO past the last data.
 */
export function seekFile(fd: number, what: keyof typeof whences, offset: number): number {
  const found = lseekCall(fd, offset, whences[what]);
  return found < 0 ? -errno() : found;
}

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const lockTypes = { shared: 0, exclusive: 1, none: 2 } as const;

/** struct flock of 64-bit ABIs: type u16, whence u16, start i64 @8, length i64 @16, pid i32 @24. */
function lockRequest(type: keyof typeof lockTypes, start: number, length: number): DataView {
  const view = new DataView(new ArrayBuffer(32));
  view.setInt16(0, lockTypes[type], true);
  view.setBigInt64(8, BigInt(start), true);
  view.setBigInt64(16, BigInt(length), true);
  return view;
}

/**
 * Takes, changes or drops an open file description lock on a byte range. Returns 0 or a negative errno; EAGAIN
 * means that somebody else's lock is in the way. The lock belongs to the open file, not to the process.
 */
export function setOfdLock(
  fd: number,
  type: keyof typeof lockTypes,
  range: { start: number; length: number },
): number {
  const result = libcCalls.fcntlPointer(fd, F_OFD_SETLK, lockRequest(type, range.start, range.length));
  return result < 0 ? -errno() : 0;
}

/** Whether somebody else's lock would be in the way of an exclusive one. Returns 1, 0 or a negative errno. */
export function testOfdLock(fd: number, range: { start: number; length: number }): number {
  const request = lockRequest('exclusive', range.start, range.length);
  const result = libcCalls.fcntlPointer(fd, F_OFD_GETLK, request);
  if (result < 0) {
    return -errno();
  }
  return request.getInt16(0, true) === lockTypes.none ? 0 : 1;
}

/** Memory outside the heap as bytes. See viewMemory for who owns what. */
export function viewBytes(address: number, length: number): Uint8Array {
  return new Uint8Array(viewMemory(address, length));
}
