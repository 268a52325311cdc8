/** Copies between nodes. */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { openLocalNode } from '../../src/block/drivers/local-node.js';
import { openBlockNode } from '../../src/block/open.js';
import { convertNode } from '../../src/daemon/convert.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { testRandom } from '../support/random.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const directory = makeTempDir();

function image(name: string, bytes: Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, bytes);
  return path;
}

const open = (filename: string) => openBlockNode({ driver: 'file', nodeName: 'file', filename });

describe('a conversion', () => {
  test('copies data, and neither holes nor zeroes, up to a last part that is short', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const bytes = new Uint8Array(3 * MiB + 512);
    for (const at of [0, 5 * 65_536 + 512, MiB, 3 * MiB]) {
      bytes.set(random.bytes(512), at);
    }
    const source = await open(image('source', bytes));
    const path = image('target', new Uint8Array());
    truncateSync(path, 4 * MiB);
    const target = await open(path);
    const progress: number[] = [];
    await convertNode({ source, target, onProgress: (done) => progress.push(done) });
    await source.close();
    await target.close();
    assert.equal(progress.at(-1), bytes.length);
    assert.ok(readFileSync(path).subarray(0, bytes.length).equals(bytes));
    assert.ok(statSync(path).blocks * 512 <= 4 * 65_536 + 65_536);
  });

  test('asks a target of large blocks for whole ones, wherever the source has its holes', async () => {
    const path = image('odd', new Uint8Array(MiB));
    truncateSync(path, 0);
    truncateSync(path, MiB);
    const fd = openSync(path, 'r+');
    for (const at of [4096 * 3, 4096 * 40, MiB - 8192]) {
      writeSync(fd, new Uint8Array(4096).fill(7), 0, 4096, at);
    }
    closeSync(fd);
    // What is aligned in the file is not in a node that begins behind its first sector.
    const file = { driver: 'file', filename: path } as const;
    const source = await openBlockNode({ driver: 'raw', nodeName: 'a', offset: 512, size: MiB - 8192, file });
    for (const without of [[], ['writeZeroes', 'discard']] as const) {
      const to = new MemoryDisk({ size: MiB, blockSize: 4096, without });
      to.bytes.fill(9);
      await convertNode({ source, target: openLocalNode({ nodeName: 'b', driver: 'array', device: to }) });
      assert.ok(
        readFileSync(path)
          .subarray(512, MiB - 7680)
          .equals(to.bytes.subarray(0, MiB - 8192)),
      );
      for (const { call, offset, length } of to.calls) {
        assert.deepEqual([offset % 4096, length % 4096], [0, 0], `${call} of ${length} at ${offset}`);
      }
    }
    await source.close();
    const odd = openLocalNode({
      nodeName: 'c',
      driver: 'array',
      device: new MemoryDisk({ size: MiB - 512 }),
    });
    const large = new MemoryDisk({ size: MiB, blockSize: 4096 });
    await assert.rejects(
      convertNode({ source: odd, target: openLocalNode({ nodeName: 'd', driver: 'array', device: large }) }),
      {
        message: /^node 'd' takes requests of 4096 bytes, of which the 1048064 bytes of 'c' are no multiple$/,
      },
    );
  });

  test('overwrites what the target had, from and to block drivers of users too', async () => {
    const from = new MemoryDisk({ size: MiB });
    from.bytes.fill(1, 4096, 8192);
    const to = new MemoryDisk({ size: MiB, without: ['writeZeroes', 'discard'] });
    to.bytes.fill(9);
    const source = openLocalNode({ nodeName: 'a', driver: 'array', device: from });
    const target = openLocalNode({ nodeName: 'b', driver: 'array', device: to });
    await convertNode({ source, target });
    assert.deepEqual(to.bytes, from.bytes);
    to.failure = new Error('full');
    await assert.rejects(convertNode({ source, target }), /on block node 'b'/);
    await assert.rejects(convertNode({ source, target, signal: AbortSignal.abort(new Error('enough')) }), {
      message: 'enough',
    });
    const small = await openBlockNode({ driver: 'memory', nodeName: 'c', size: 4096 });
    await assert.rejects(convertNode({ source, target: small }), { code: 'INVALID_ARGUMENT' });
    await small.close();
  });
});
