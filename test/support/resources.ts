/** What a process holds, to prove that a test or a close gives everything back. */
import { readdirSync, readFileSync } from 'node:fs';

export function openFdCount(): number {
  return readdirSync('/proc/self/fd').length;
}

/** Maps of which the line in /proc/self/maps contains `text`. JavaScript's own maps come and go. */
export function mapCount(text: string): number {
  return readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .filter((line) => line.includes(text)).length;
}

/** Whether any map covers the address. */
export function isMapped(address: number): boolean {
  return readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .some((line) => {
      const range = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
      return (
        range !== null && address >= Number.parseInt(range[1], 16) && address < Number.parseInt(range[2], 16)
      );
    });
}
