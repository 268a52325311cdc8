/**
 * The C library as TypeScript sees it. Only this folder calls through FFI; the rest of the project uses
 * the typed functions beside this file. Pointers are numbers: user-space addresses are below 2^47 on x86-64
 * and 2^48 on arm64, so a double holds them exactly.
 */
import koffi from 'koffi';
import { SystemCallError } from '../base/errors.js';
import { describeErrno } from './errno.js';

const libc = koffi.load(null);

type Address = number;
type Bytes = ArrayBufferView | ArrayBuffer | null;

function bind<T>(name: string, result: string, parameters: string[]): T {
  return libc.func(name, result, parameters) as unknown as T;
}

/** Variadic functions (ioctl, fcntl, open, syscall) take their integer arguments like ordinary ones on both ABIs. */
export const libcCalls = {
  close: bind<(fd: number) => number>('close', 'int', ['int']),
  dup3: bind<(from: number, to: number, flags: number) => number>('dup3', 'int', ['int', 'int', 'int']),
  epollCreate: bind<(flags: number) => number>('epoll_create1', 'int', ['int']),
  epollCtl: bind<(epoll: number, operation: number, fd: number, event: Bytes) => number>('epoll_ctl', 'int', [
    'int',
    'int',
    'int',
    'void *',
  ]),
  epollWait: bind<(epoll: number, events: Bytes, count: number, timeoutMs: number) => number>(
    'epoll_wait',
    'int',
    ['int', 'void *', 'int', 'int'],
  ),
  eventfd: bind<(initial: number, flags: number) => number>('eventfd', 'int', ['uint', 'int']),
  fcntlPointer: bind<(fd: number, command: number, argument: Bytes) => number>('fcntl', 'int', [
    'int',
    'int',
    'void *',
  ]),
  fcntlNumber: bind<(fd: number, command: number, argument: number) => number>('fcntl', 'int', [
    'int',
    'int',
    'long',
  ]),
  fallocate: bind<(fd: number, mode: number, offset: number, length: number) => number>('fallocate', 'int', [
    'int',
    'int',
    'int64_t',
    'int64_t',
  ]),
  fdatasync: bind<(fd: number) => number>('fdatasync', 'int', ['int']),
  fsync: bind<(fd: number) => number>('fsync', 'int', ['int']),
  ftruncate: bind<(fd: number, length: number) => number>('ftruncate', 'int', ['int', 'int64_t']),
  ioctlPointer: bind<(fd: number, request: number, argument: Bytes) => number>('ioctl', 'int', [
    'int',
    'ulong',
    'void *',
  ]),
  ioctlAddress: bind<(fd: number, request: number, argument: Address) => number>('ioctl', 'int', [
    'int',
    'ulong',
    'uintptr_t',
  ]),
  madvise: bind<(address: Address, length: number, advice: number) => number>('madvise', 'int', [
    'uintptr_t',
    'size_t',
    'int',
  ]),
  memcmp: bind<(a: Address, b: Address, length: number) => number>('memcmp', 'int', [
    'uintptr_t',
    'uintptr_t',
    'size_t',
  ]),
  memcpy: bind<(destination: Address, source: Address, length: number) => Address>('memcpy', 'uintptr_t', [
    'uintptr_t',
    'uintptr_t',
    'size_t',
  ]),
  memfdCreate: bind<(name: string, flags: number) => number>('memfd_create', 'int', ['str', 'uint']),
  memset: bind<(destination: Address, value: number, length: number) => Address>('memset', 'uintptr_t', [
    'uintptr_t',
    'int',
    'size_t',
  ]),
  mmap: bind<
    (
      address: Address,
      length: number,
      protection: number,
      flags: number,
      fd: number,
      offset: number,
    ) => number | bigint
  >('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']),
  munmap: bind<(address: Address, length: number) => number>('munmap', 'int', ['uintptr_t', 'size_t']),
  open: bind<(path: string, flags: number, mode: number) => number>('open', 'int', ['str', 'int', 'uint']),
  pread: bind<(fd: number, address: Address, length: number, offset: number) => number>('pread', 'long', [
    'int',
    'uintptr_t',
    'size_t',
    'int64_t',
  ]),
  preadBytes: bind<(fd: number, buffer: Bytes, length: number, offset: number) => number>('pread', 'long', [
    'int',
    'void *',
    'size_t',
    'int64_t',
  ]),
  pwrite: bind<(fd: number, address: Address, length: number, offset: number) => number>('pwrite', 'long', [
    'int',
    'uintptr_t',
    'size_t',
    'int64_t',
  ]),
  read: bind<(fd: number, buffer: Bytes, length: number) => number>('read', 'long', [
    'int',
    'void *',
    'size_t',
  ]),
  sysconf: bind<(name: number) => number>('sysconf', 'long', ['int']),
  syscall6: bind<(nr: number, a: number, b: number, c: number, d: number, e: number, f: number) => number>(
    'syscall',
    'long',
    ['long', 'long', 'long', 'long', 'long', 'long', 'long'],
  ),
  timerfdCreate: bind<(clock: number, flags: number) => number>('timerfd_create', 'int', ['int', 'int']),
  timerfdSettime: bind<(fd: number, flags: number, value: Address, old: Address) => number>(
    'timerfd_settime',
    'int',
    ['int', 'int', 'uintptr_t', 'uintptr_t'],
  ),
  eventfdWrite: bind<(fd: number, value: number) => number>('eventfd_write', 'int', ['int', 'uint64_t']),
  write: bind<(fd: number, buffer: Bytes, length: number) => number>('write', 'long', [
    'int',
    'void *',
    'size_t',
  ]),
};

/** Binds one more function of the C library; for the files of this folder. */
export const bindLibc = bind;

/** The calling thread's errno, positive. Valid right after a call that failed. */
export function errno(): number {
  return koffi.errno();
}

/** Passes a result through, or throws the error that errno names. `detail` tells what the call was about. */
export function check(result: number, call: string, detail?: string): number {
  if (result < 0) {
    throw systemCallError(call, errno(), detail);
  }
  return result;
}

/** The error for a known errno (positive). */
export function systemCallError(call: string, code: number, detail?: string): SystemCallError {
  return new SystemCallError(call, code, describeErrno(code), detail);
}

/**
 * Views `length` bytes of memory that is not JavaScript's. The view does not own the memory: whoever unmaps
 * it must have dropped every view, for a read through a stale one ends the process. At most 4 GiB.
 */
export function viewMemory(address: Address, length: number): ArrayBuffer {
  return koffi.view(BigInt(address), length);
}

/** The address of a buffer's first byte. The buffer must stay referenced, and must not be resized, while it is used. */
export function addressOf(buffer: ArrayBufferView | ArrayBuffer): Address {
  return Number(koffi.address(buffer));
}
