/** Copies between nodes. */
import assert from 'node:assert/strict';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
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
