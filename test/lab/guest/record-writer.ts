/**
 * Writes records to a file or disk and says which of them are safe: `acknowledged N` comes after the write of N
 * and an fdatasync. Goes on until an error or the last record. Read back by records.ts.
 *
 *   node record-writer.js TARGET COUNT
 */
import { closeSync, fdatasyncSync, openSync, writeSync } from 'node:fs';
import { makeRecord, recordBytes } from './records.js';

const [target, count] = process.argv.slice(2);
const fd = openSync(target, 'r+');
try {
  for (let index = 0; index < Number(count); index++) {
    writeSync(fd, makeRecord(index), 0, recordBytes, index * recordBytes);
    fdatasyncSync(fd);
    process.stdout.write(`acknowledged ${index}\n`);
  }
  closeSync(fd);
} catch (error) {
  process.stdout.write(`stopped: ${error instanceof Error ? error.message : error}\n`);
}
