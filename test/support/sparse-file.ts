/** Files of zeroes that take no space. */
import { truncateSync, writeFileSync } from 'node:fs';

/** Makes the file, or makes it anew. Returns its path. */
export function makeSparseFile(path: string, bytes: number): string {
  writeFileSync(path, '');
  truncateSync(path, bytes);
  return path;
}
