/** Records that can be told from anything else that might stand in their place. */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';

export const recordBytes = 4096;

export function makeRecord(index: number): Buffer {
  const seed = createHash('sha256').update(`record ${index}`).digest();
  return Buffer.alloc(recordBytes, seed);
}

/** The last record that the writer was sure of; -1 if none. */
export function lastAcknowledged(output: string): number {
  const lines = output.match(/^acknowledged \d+$/gm) ?? [];
  return lines.length === 0 ? -1 : Number(lines[lines.length - 1].split(' ')[1]);
}

/** Throws where one of the records up to `last` is not there. */
export function checkRecords(path: string, last: number): void {
  const fd = openSync(path, 'r');
  const found = Buffer.alloc(recordBytes);
  try {
    for (let index = 0; index <= last; index++) {
      readSync(fd, found, 0, recordBytes, index * recordBytes);
      if (!found.equals(makeRecord(index))) {
        throw new Error(`record ${index} of ${last} acknowledged ones is not in ${path}`);
      }
    }
  } finally {
    closeSync(fd);
  }
}
