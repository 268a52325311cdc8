/** How much of a file is mapped in this process. Bytes, not maps: neighbours may be one line in /proc/self/maps. */
import { readFileSync } from 'node:fs';

export function mappedBytes(name: string): number {
  return readFileSync('/proc/self/maps', 'latin1')
    .split('\n')
    .filter((line) => line.includes(name))
    .reduce((sum, line) => {
      const [from, to] = line.split(' ', 1)[0].split('-');
      return sum + Number.parseInt(to, 16) - Number.parseInt(from, 16);
    }, 0);
}
