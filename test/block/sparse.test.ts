/** Sparse files stay sparse: what discards, write-zeroes and detect-zeroes free, and what they keep. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, type TestContext, test } from 'node:test';
import type { FileNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { type BlkSetup, startBlk } from '../support/blk.js';
import { makeTestPool } from '../support/leftovers.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const size = 8 << 20;
const mebibyte = 1 << 20;
const pool = makeTestPool({ size: 1 });
const directory = makeTempDir();
let files = 0;

interface Sparse extends BlkSetup {
  readonly path: string;
  /** Bytes that the file takes on its file system. */
  allocated(): number;
}

/** A file of 8 MiB, of which MiB 2 to 4 are written, on a disk of its own. */
async function withFile(
  where: string,
  options: Partial<FileNodeOptions>,
  use: (sparse: Sparse) => Promise<void>,
): Promise<void> {
  const path = makeSparseFile(join(where, `sparse-${files++}.img`), size);
  const node = await openBlockNode({
    driver: 'file',
    nodeName: 'n',
    filename: path,
    discard: 'unmap',
    ...options,
  });
  const setup = await startBlk({ node, hosts: pool });
  try {
    const data = new Uint8Array(2 * mebibyte).fill(0x5a);
    assert.equal((await setup.client.write(2 * mebibyte, data)).status, BLK_S.OK);
    await use({ ...setup, path, allocated: () => statSync(path).blocks * 512 });
  } finally {
    await setup.close();
    rmSync(path);
  }
}

/** File systems count a little metadata, and may hold zeroed blocks in larger pieces. */
function near(actual: number, expected: number): void {
  assert.ok(Math.abs(actual - expected) <= 128 << 10, `${actual} bytes allocated, not about ${expected}`);
}

function checkContent(path: string, zeroed: { from: number; to: number }): void {
  const file = readFileSync(path);
  const expected = new Uint8Array(size)
    .fill(0x5a, 2 * mebibyte, 4 * mebibyte)
    .fill(0, zeroed.from, zeroed.to);
  assert.ok(file.equals(expected));
}

const half = { sector: (2 * mebibyte) / 512, sectors: mebibyte / 512 };
const middle = { from: 2 * mebibyte, to: 3 * mebibyte };

function suite(where: () => string | undefined): void {
  const run =
    (options: Partial<FileNodeOptions>, use: (sparse: Sparse) => Promise<void>) =>
    async (t: TestContext): Promise<void> => {
      const place = where();
      if (place === undefined) {
        t.skip('there is no such file system here');
        return;
      }
      await withFile(place, options, use);
    };

  test(
    'writes allocate what they write',
    run({}, async ({ allocated }) => near(allocated(), 2 * mebibyte)),
  );

  test(
    'a discard frees',
    run({}, async ({ client, allocated, path }) => {
      assert.equal((await client.discard([half])).status, BLK_S.OK);
      near(allocated(), mebibyte);
      checkContent(path, middle);
    }),
  );

  test(
    'write-zeroes with unmap frees',
    run({}, async ({ client, allocated, path }) => {
      assert.equal((await client.writeZeroes([{ ...half, flags: 1 }])).status, BLK_S.OK);
      near(allocated(), mebibyte);
      checkContent(path, middle);
    }),
  );

  test(
    '5.2.6.2: write-zeroes without unmap keeps the blocks',
    run({}, async ({ client, allocated, path }) => {
      assert.equal((await client.writeZeroes([half])).status, BLK_S.OK);
      near(allocated(), 2 * mebibyte);
      checkContent(path, middle);
    }),
  );

  test(
    'discard=ignore: unmapping zeroes keep the blocks',
    run({ discard: 'ignore' }, async ({ client, allocated, path }) => {
      assert.equal((await client.discard([half])).status, BLK_S.UNSUPP);
      assert.equal((await client.writeZeroes([{ ...half, flags: 1 }])).status, BLK_S.OK);
      near(allocated(), 2 * mebibyte);
      checkContent(path, middle);
    }),
  );

  for (const [detectZeroes, left] of [
    ['off', 2],
    ['on', 2],
    ['unmap', 1],
  ] as const) {
    test(
      `detect-zeroes=${detectZeroes}: zeroes written over data leave ${left} MiB allocated`,
      run({ detectZeroes }, async ({ client, allocated, path, device }) => {
        assert.equal((await client.write(2 * mebibyte, new Uint8Array(mebibyte))).status, BLK_S.OK);
        near(allocated(), left * mebibyte);
        checkContent(path, middle);
        const { writes, writeBytes, unmaps } = device.statistics;
        assert.deepEqual([writes, writeBytes, unmaps], [2, 3 * mebibyte, 0]);
      }),
    );
  }

  test(
    'detect-zeroes looks at every byte',
    run({ detectZeroes: 'unmap' }, async ({ client, allocated, path }) => {
      for (const at of [0, 511, 65535]) {
        const data = new Uint8Array(65536);
        data[at] = 1;
        assert.equal((await client.write(6 * mebibyte, data)).status, BLK_S.OK);
        assert.ok(
          readFileSync(path)
            .subarray(6 * mebibyte, 6 * mebibyte + 65536)
            .equals(data),
        );
        near(allocated(), 2 * mebibyte + 65536);
      }
    }),
  );
}

describe('in the temporary directory', () => suite(() => directory));

describe('in tmpfs', () => {
  let shm: string | undefined;
  try {
    shm = mkdtempSync('/dev/shm/vduse-test-');
  } catch {
    shm = undefined;
  }
  after(() => {
    if (shm !== undefined) {
      rmSync(shm, { recursive: true });
    }
  });
  suite(() => shm);
});
