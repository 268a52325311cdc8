/** 2.7.4 and 5.2.6: a request means the same however its header, data and status are cut into buffers. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BLK_S, BLK_T } from '../../src/device/blk/blk-protocol.js';
import { RING_F } from '../../src/virtqueue/layout.js';
import { memoryNode, startBlk } from '../support/blk.js';
import { type BlkReply, type BlkRequest, encodeRanges } from '../support/blk-client.js';
import { untouched } from '../support/front-end-memory.js';
import { makeTestPool } from '../support/leftovers.js';
import { propertyRuns } from '../support/property.js';
import { Random } from '../support/random.js';

const size = 1 << 20;
const serial = 'serial-of-20-bytes-X';
const pool = makeTestPool({ size: 1 });

const cuts = fc.record({
  seed: fc.integer({ min: 0, max: 0xffff_ffff }),
  pieces: fc.constantFrom(1, 2, 3, 5, 17, 60, 120),
  sector: fc.integer({ min: 0, max: 1984 }),
  sectors: fc.integer({ min: 0, max: 64 }),
});

for (const [how, without, tableEntries] of [
  ['in the queue', [RING_F.INDIRECT_DESC], 0],
  ['in indirect tables where they fit', [], 64],
  ['in indirect tables longer than the queue', [RING_F.EVENT_IDX], 300],
] as const) {
  test(`any cut, ${how}`, { timeout: 60_000 }, async () => {
    const setup = await startBlk({
      node: await memoryNode(size),
      hosts: pool,
      device: { queueSize: 256, serial },
      frontEnd: { without, tableEntries },
    });
    const disk = new Uint8Array(size);
    const ask = (request: BlkRequest, cut: { seed: number; pieces: number }): Promise<BlkReply> =>
      setup.client.request({ ...request, split: { random: new Random(cut.seed), pieces: cut.pieces } });

    await fc.assert(
      fc.asyncProperty(cuts, cuts, async (write, read) => {
        const out = new Random(write.seed).bytes(write.sectors * 512);
        const written = await ask({ type: BLK_T.OUT, sector: write.sector, out }, write);
        assert.deepEqual([written.status, written.written], [BLK_S.OK, 1]);
        disk.set(out, write.sector * 512);

        const length = read.sectors * 512;
        const got = await ask({ type: BLK_T.IN, sector: read.sector, in: length }, read);
        assert.deepEqual([got.status, got.written], [BLK_S.OK, length + 1]);
        const at = read.sector * 512;
        assert.ok(Buffer.from(got.data).equals(disk.subarray(at, at + length)), 'the data that was read');

        const id = await ask({ type: BLK_T.GET_ID, in: 20 }, write);
        assert.equal(Buffer.from(id.data).toString('latin1'), serial);

        const range = { sector: read.sector, sectors: read.sectors };
        const out2 = encodeRanges([{ sector: 3, sectors: 0 }, range]);
        const zeroed = await ask({ type: BLK_T.WRITE_ZEROES, out: out2 }, write);
        assert.equal(zeroed.status, BLK_S.OK);
        disk.fill(0, at, at + length);

        const beyond = await ask({ type: BLK_T.IN, sector: 2047, in: 1024 }, read);
        assert.equal(beyond.status, BLK_S.IOERR);
        assert.ok(beyond.data.every((byte) => byte === untouched));
      }),
      propertyRuns(60),
    );
    const all = await setup.client.read(0, size);
    assert.ok(Buffer.from(all.data).equals(disk), 'the whole disk');
    await setup.close();
  });
}
