/** Huge pages of the kernel's pool, reserved for a test and given back. */
import { ftruncateSync, readFileSync, writeFileSync } from 'node:fs';
import { check, libcCalls } from '../../src/native/ffi.js';

const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const poolPath = '/proc/sys/vm/nr_hugepages';

/** Bytes of a huge page of the default size; 0 where the kernel has none. */
export function hugePageBytes(): number {
  return 1024 * Number(/^Hugepagesize:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
}

const poolSize = (): number => Number(readFileSync(poolPath, 'utf8'));

/** Enlarges the pool. Returns what sets it back, or a sentence that says why it can't be done. */
export function reserveHugePages(count: number): (() => void) | string {
  if (hugePageBytes() === 0) {
    return 'This kernel has no huge pages.';
  }
  const before = poolSize();
  const restore = (): void => writeFileSync(poolPath, String(before));
  try {
    writeFileSync(poolPath, String(before + count));
  } catch (error) {
    return `Huge pages can't be reserved: ${(error as Error).message}`;
  }
  if (poolSize() < before + count) {
    restore();
    return `The kernel finds no memory for ${count} huge pages.`;
  }
  return restore;
}

/** A file of huge pages, of a whole number of them. */
export function createHugePageFile(name: string, bytes: number): number {
  const fd = check(libcCalls.memfdCreate(name, MFD_CLOEXEC | MFD_HUGETLB), 'memfd_create');
  ftruncateSync(fd, bytes);
  return fd;
}
