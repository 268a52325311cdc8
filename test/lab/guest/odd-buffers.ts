/**
 * Reads and writes a disk with O_DIRECT from memory at odd offsets, and checks every byte. Prints `whole: N transfers`.
 *
 *   node odd-buffers.js DISK
 */
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import { basename } from 'node:path';
import { OpenFlag, viewBytes } from '../../../src/native/fd.js';
import { mapAnonymous, pageSize } from '../../../src/native/memory.js';

const [disk] = process.argv.slice(2);
const attribute = (name: string): number =>
  Number(readFileSync(`/sys/block/${basename(disk)}/queue/${name}`, 'utf8'));
/** A mask: what the kernel wants of a buffer's address. 511 is common, 3 where the driver takes anything. */
const memoryAlignment = attribute('dma_alignment') + 1;
const block = attribute('logical_block_size');

const room = 2 << 20;
const memory = viewBytes(mapAnonymous(room), room);
// From the last page to the first: neighbours here are none in the machine's memory, so that a buffer at an odd
// offset comes to the device in pieces whose lengths are odd too.
for (let page = room - pageSize; page >= 0; page -= pageSize) {
  memory[page] = 0;
}
const fd = openSync(disk, OpenFlag.O_RDWR | OpenFlag.O_DIRECT);

function pattern(at: number): number {
  return (at * 7 + (at >> 9) * 13 + (at >> 17)) & 0xff;
}

let transfers = 0;
const offsets = [0, memoryAlignment, 512, 1024, 1536, pageSize - 512, pageSize + 512 + memoryAlignment];
const lengths = [block, 2 * block, 16 * block + block, 256 << 10, 1 << 20].map(
  (length) => length - (length % block),
);

for (const offset of offsets) {
  for (const length of lengths) {
    const where = block * (transfers * 3 + 5);
    const buffer = memory.subarray(offset, offset + length);
    for (let at = 0; at < length; at++) {
      buffer[at] = pattern(where + at);
    }
    if (writeSync(fd, buffer, 0, length, where) !== length) {
      throw new Error(`short write of ${length} bytes from offset ${offset}`);
    }
    buffer.fill(0xee);
    memory[offset + length] = 0x55;
    if (readSync(fd, buffer, 0, length, where) !== length) {
      throw new Error(`short read of ${length} bytes to offset ${offset}`);
    }
    const wrong = buffer.findIndex((byte, at) => byte !== pattern(where + at));
    if (wrong !== -1 || memory[offset + length] !== 0x55) {
      throw new Error(
        `${length} bytes at memory offset ${offset}: byte ${wrong} is wrong, or one behind them`,
      );
    }
    transfers++;
  }
}
closeSync(fd);
process.stdout.write(`whole: ${transfers} transfers, memory alignment ${memoryAlignment}, block ${block}\n`);
