/** Two nodes hold the same, or not. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { openLocalNode } from '../../src/block/drivers/local-node.js';
import { openBlockNode } from '../../src/block/open.js';
import { compareNodes } from '../../src/daemon/compare.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { openFdCount } from '../support/resources.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;

function disk(size: number): { bytes: Uint8Array; disk: MemoryDisk; node: ReturnType<typeof openLocalNode> } {
  const memory = new MemoryDisk({ size });
  const node = openLocalNode({ nodeName: 'disk', driver: 'array', device: memory });
  return { bytes: memory.bytes, disk: memory, node };
}

describe('a comparison', () => {
  test('finds the sector that differs, and nothing where none does', async () => {
    const [one, other] = [disk(5 * MiB + 512), disk(6 * MiB)];
    one.bytes.fill(7);
    other.bytes.fill(7, 0, 5 * MiB + 512);
    other.bytes.fill(1, 5 * MiB + 512);
    const nodes = { source: one.node, target: other.node };
    const progress: number[] = [];
    assert.equal(await compareNodes({ ...nodes, onProgress: (done) => progress.push(done) }), undefined);
    assert.equal(progress.at(-1), 5 * MiB + 512);
    for (const at of [0, 1023, 3 * MiB + 5, 5 * MiB + 511]) {
      other.bytes[at] ^= 1;
      assert.equal(await compareNodes(nodes), at - (at % 512));
      other.bytes[at] ^= 1;
    }
  });

  test('looks at no hole that both have, and at what only one has', async () => {
    const directory = makeTempDir();
    const open = async (name: string) => {
      const filename = makeSparseFile(join(directory, name), 4 * MiB);
      return openBlockNode({ driver: 'file', nodeName: name, filename });
    };
    const fds = openFdCount();
    const [source, target] = [await open('a'), await open('b')];
    assert.equal(await compareNodes({ source, target }), undefined);
    await source.close();
    await target.close();
    assert.equal(openFdCount(), fds);
    writeFileSync(join(directory, 'b'), new Uint8Array(4 * MiB).fill(1, 3 * MiB));
    const node = (name: string) =>
      openBlockNode({ driver: 'file', nodeName: name, filename: join(directory, name) });
    const again = { source: await node('a'), target: await node('b') };
    assert.equal(await compareNodes(again), 3 * MiB);
    await again.source.close();
    await again.target.close();
  });

  test('ends with the error of a node, and when it is told to', async () => {
    const [one, other] = [disk(MiB), disk(MiB)];
    const nodes = { source: one.node, target: other.node };
    other.disk.failure = new Error('gone');
    await assert.rejects(compareNodes(nodes), /on block node 'disk'/);
    other.disk.failure = undefined;
    const signal = AbortSignal.abort(new Error('enough'));
    await assert.rejects(compareNodes({ ...nodes, signal }), { message: 'enough' });
  });
});
