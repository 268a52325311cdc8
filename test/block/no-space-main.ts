/** A disk image on a file system that runs full; the program of no-space.test.ts, with mounts of its own. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { startBlk } from '../support/blk.js';
import { makeSparseFile } from '../support/sparse-file.js';

const [directory] = process.argv.slice(2);
execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', directory]);
const filename = makeSparseFile(join(directory, 'full.img'), 8 << 20);
const pool = new QueueThreadPool({ size: 1 });
const node = await openBlockNode({ driver: 'file', nodeName: 'n', filename, discard: 'unmap' });
const { client, device, close } = await startBlk({ node, hosts: pool });
const piece = 65536;
const data = new Uint8Array(piece).fill(0x77);
const statuses: number[] = [];
for (let offset = 0; offset < 2 << 20; offset += piece) {
  statuses.push((await client.write(offset, data)).status);
}
const failed = statuses.indexOf(BLK_S.IOERR);
assert.ok(failed >= 8 && failed <= 16, `the first write that failed was the ${failed}th`);
assert.ok(statuses.slice(0, failed).every((status) => status === BLK_S.OK));
assert.ok(statuses.slice(failed + 1).every((status) => status === BLK_S.IOERR));
assert.equal((await client.writeZeroes([{ sector: 8192, sectors: 4096 }])).status, BLK_S.IOERR);
// The device goes on: reads, flushes, and writes where there is room, also after it was made.
assert.equal((await client.flush()).status, BLK_S.OK);
assert.equal((await client.read(0, piece)).status, BLK_S.OK);
assert.equal((await client.write(0, data)).status, BLK_S.OK);
assert.equal((await client.discard([{ sector: 0, sectors: (4 * piece) / 512 }])).status, BLK_S.OK);
assert.equal((await client.write(failed * piece, data)).status, BLK_S.OK);
assert.ok(
  readFileSync(filename)
    .subarray(failed * piece, (failed + 1) * piece)
    .equals(data),
);
assert.equal(device.statistics.errors, statuses.length - failed + 1);
await close();
await pool.close();
console.log('the device went on');
