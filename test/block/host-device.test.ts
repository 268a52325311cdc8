/** Block devices: loop devices over files, where the system lets us make them. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { FileNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { startBlk } from '../support/blk.js';
import { makeTestPool } from '../support/leftovers.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const size = 4 << 20;
const directory = makeTempDir();
const pool = makeTestPool({ size: 1 });
let files = 0;

async function withLoop(
  t: TestContext,
  options: readonly string[],
  use: (loop: { device: string; file: string }) => Promise<void>,
): Promise<void> {
  const file = makeSparseFile(join(directory, `loop-${files++}.img`), size);
  const made = spawnSync('losetup', ['--find', '--show', ...options, file], { encoding: 'utf8' });
  if (made.status !== 0) {
    t.skip(`no loop device: ${made.error?.message ?? made.stderr.trim()}`);
    return;
  }
  const device = made.stdout.trim();
  try {
    await use({ device, file });
  } finally {
    spawnSync('losetup', ['--detach', device]);
  }
}

const node = (filename: string, options: Partial<FileNodeOptions> = {}): FileNodeOptions => ({
  driver: 'host_device',
  nodeName: 'n',
  filename,
  ...options,
});

for (const direct of [false, true]) {
  test(`a disk is served${direct ? ' with cache.direct' : ''}, and discards reach it`, (t) =>
    withLoop(t, ['--sector-size', '4096'], async ({ device, file }) => {
      const opened = await openBlockNode(node(device, { discard: 'unmap', cache: { direct } }));
      assert.deepEqual([opened.size, opened.limits.requestAlignment], [size, 4096]);
      const { client, close, device: blk } = await startBlk({ node: opened, hosts: pool });
      assert.equal(blk.blockSize, 4096);
      const data = Uint8Array.from({ length: 1 << 20 }, (_, at) => at * 7);
      assert.equal((await client.write(1 << 20, data)).status, BLK_S.OK);
      assert.equal((await client.read(512, 512)).status, BLK_S.IOERR);
      assert.equal((await client.flush()).status, BLK_S.OK);
      assert.ok(
        readFileSync(file)
          .subarray(1 << 20, 2 << 20)
          .equals(data),
      );
      const before = statSync(file).blocks;
      assert.equal((await client.discard([{ sector: 2048, sectors: 1024 }])).status, BLK_S.OK);
      assert.equal((await client.writeZeroes([{ sector: 3072, sectors: 512 }])).status, BLK_S.OK);
      assert.equal((await client.flush()).status, BLK_S.OK);
      assert.ok(statSync(file).blocks < before, 'the file below has fewer blocks');
      const read = await client.read(1 << 20, 1 << 20);
      assert.ok(read.data.subarray(0, 1536 * 512).every((byte) => byte === 0));
      assert.ok(Buffer.from(read.data.subarray(1536 * 512)).equals(data.subarray(1536 * 512)));
      await close();
    }));
}

test('the driver for files refuses a disk and names the one for disks', (t) =>
  withLoop(t, [], async ({ device }) => {
    await assert.rejects(openBlockNode({ ...node(device), driver: 'file' }), {
      code: 'IMAGE_INVALID',
      message: /to be a regular file$/,
      hint: /driver=host_device/,
    });
  }));

test('a read-only disk is opened for writing by nobody, and read-only where that is allowed', (t) =>
  withLoop(t, ['--read-only'], async ({ device }) => {
    await assert.rejects(openBlockNode(node(device)), { code: 'PERMISSION_DENIED' });
    const opened = await openBlockNode(node(device, { autoReadOnly: true }));
    assert.equal(opened.readOnly, true);
    await opened.close();
  }));

test('resize follows the device and does not go beyond it', (t) =>
  withLoop(t, [], async ({ device }) => {
    const opened = await openBlockNode(node(device));
    await assert.rejects(opened.resize(size + 512), {
      code: 'INVALID_ARGUMENT',
      hint: /Grow the device first/,
    });
    await opened.resize(1 << 20);
    assert.equal(opened.size, 1 << 20);
    await opened.resize(size);
    await opened.close();
  }));
