/** Huge pages of the host for the time of a test. */
import { readFileSync, writeFileSync } from 'node:fs';

import { errorMessage } from '../../src/base/errors.js';

const folder = '/sys/kernel/mm/hugepages/hugepages-2048kB';
const hugePageBytes = 2 << 20;

const count = (name: string): number => Number(readFileSync(`${folder}/${name}`, 'utf8'));

function set(pages: number): void {
  writeFileSync(`${folder}/nr_hugepages`, `${pages}`);
}

/** Sees to so many bytes of free huge pages. Returns how to give them back, or why the host has none. */
export function reserveHugePages(bytes: number): (() => void) | string {
  const wanted = bytes / hugePageBytes;
  try {
    const before = count('nr_hugepages');
    const lacking = Math.max(0, wanted - count('free_hugepages'));
    // The kernel gives as many as it finds room for.
    set(before + lacking);
    if (count('free_hugepages') < wanted) {
      set(before);
      return `the host has no ${wanted} free huge pages`;
    }
    return () => set(before);
  } catch (error) {
    return `huge pages can't be reserved: ${errorMessage(error)}`;
  }
}
