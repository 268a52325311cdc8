/** Memory outside the JavaScript heap: maps, anonymous memory, and the few operations on it by address. */
import { Errno } from './errno.js';
import { check, errno, libcCalls, systemCallError } from './ffi.js';

const SC_PAGESIZE = 30;
const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;
const MAP_NORESERVE = 0x4000;
const MFD_CLOEXEC = 1;

/** Bytes: 4096 on x86-64, up to 65536 on arm64. */
export const pageSize = libcCalls.sysconf(SC_PAGESIZE);

/** MAP_FAILED is all ones; anything in the upper half of the address space is no user-space address. */
const addressLimit = 2 ** 48;

export interface FileMapOptions {
  readonly fd: number;
  /** Bytes; the kernel rounds up to a page. */
  readonly length: number;
  /** Bytes from the start of the file, a multiple of the page size. */
  readonly offset: number;
  readonly readable: boolean;
  readonly writable: boolean;
}

function map(length: number, protection: number, flags: number, fd: number, offset: number): number {
  const address = Number(libcCalls.mmap(0, length, protection, flags, fd, offset));
  if (address >= addressLimit) {
    throw systemCallError('mmap', errno(), `of ${length} bytes`);
  }
  return address;
}

/** Maps a file's pages, shared. The caller owns the map and unmaps it with `unmap`. Returns its address. */
export function mapFile(options: FileMapOptions): number {
  const protection = (options.readable ? PROT_READ : 0) | (options.writable ? PROT_WRITE : 0);
  return map(options.length, protection, MAP_SHARED, options.fd, options.offset);
}

/**
 * Anonymous zeroed memory, page aligned. Pages that are never touched cost nothing, so a caller may
 * reserve for its worst case.
 */
export function mapAnonymous(length: number): number {
  return map(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/** Ends a map. No view of it may be used afterwards. */
export function unmap(address: number, length: number): void {
  check(libcCalls.munmap(address, length), 'munmap', `of ${length} bytes`);
}

/** A file that exists in memory only, of `size` bytes. The caller closes the descriptor. */
export function createMemoryFile(name: string, size: number): number {
  const fd = check(libcCalls.memfdCreate(name, MFD_CLOEXEC), 'memfd_create');
  const result = truncateRetrying(fd, size);
  if (result !== 0) {
    libcCalls.close(fd);
    throw systemCallError('ftruncate', result, `to ${size} bytes`);
  }
  return fd;
}

function truncateRetrying(fd: number, size: number): number {
  for (;;) {
    if (libcCalls.ftruncate(fd, size) === 0) {
      return 0;
    }
    if (errno() !== Errno.EINTR) {
      return errno();
    }
  }
}

const MADV_POPULATE_WRITE = 23;

/**
 * Makes a range's pages present and writable. False: there are none, or they may not be written; Linux before 5.14
 * says that of every range.
 */
export function populate(address: number, length: number): boolean {
  return libcCalls.madvise(address, length, MADV_POPULATE_WRITE) === 0;
}

/** Copies between host addresses that do not overlap. */
export function copyMemory(destination: number, source: number, length: number): void {
  libcCalls.memcpy(destination, source, length);
}

export function fillZeroes(address: number, length: number): void {
  libcCalls.memset(address, 0, length);
}

/** Whether two ranges hold the same. */
export function isEqual(a: number, b: number, length: number): boolean {
  return libcCalls.memcmp(a, b, length) === 0;
}

/** Zeroes to compare with, kept for the life of the thread. Only read, so they take one page of the system's. */
const zeroBlockLength = 1 << 20;
let zeroBlock = 0;

/** Whether all bytes are zero. */
export function isZero(address: number, length: number): boolean {
  if (zeroBlock === 0) {
    zeroBlock = mapAnonymous(zeroBlockLength);
  }
  for (let done = 0; done < length; done += zeroBlockLength) {
    if (libcCalls.memcmp(address + done, zeroBlock, Math.min(zeroBlockLength, length - done)) !== 0) {
      return false;
    }
  }
  return true;
}
