/** Images that go wrong under the device: a full file system, and a file that somebody cuts. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { VduseError } from '../../src/base/errors.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { startBlk } from '../support/blk.js';
import { untouched } from '../support/front-end-memory.js';
import { makeTestPool } from '../support/leftovers.js';
import { makeTempDir } from '../support/temp-dir.js';
import { privateMounts } from '../support/tools.js';

const directory = makeTempDir();
const pool = makeTestPool({ size: 1 });

test('a full file system is an I/O error for the front-end, and the device goes on', (t) => {
  const command = privateMounts();
  if (command === undefined) {
    t.skip('mounting a small file system needs root or user namespaces');
    return;
  }
  const mountPoint = mkdtempSync(join(directory, 'full-'));
  const program = fileURLToPath(new URL('./no-space-main.js', import.meta.url));
  const args = [...command.slice(1), process.execPath, program, mountPoint];
  const { status, stdout, stderr } = spawnSync(command[0], args, { encoding: 'utf8', timeout: 20_000 });
  assert.equal(status, 0, stderr);
  assert.match(stdout, /the device went on/);
});

for (const direct of [false, true]) {
  test(`a file that was cut${direct ? ' (cache.direct)' : ''}: reads beyond fail and give no zeroes`, async (t) => {
    const filename = join(directory, `cut-${direct}.img`);
    writeFileSync(filename, new Uint8Array(1 << 20).fill(0x11));
    let node: Awaited<ReturnType<typeof openBlockNode>>;
    try {
      node = await openBlockNode({ driver: 'file', nodeName: 'n', filename, cache: { direct } });
    } catch (error) {
      if (error instanceof VduseError && error.code === 'NOT_SUPPORTED') {
        t.skip('this file system has no O_DIRECT');
        return;
      }
      throw error;
    }
    const { client, device, close } = await startBlk({ node, hosts: pool });
    truncateSync(filename, 512 << 10);
    const beyond = await client.read(768 << 10, 4096);
    assert.equal(beyond.status, BLK_S.IOERR);
    assert.ok(beyond.data.every((byte) => byte === untouched));
    const across = await client.read((512 << 10) - 4096, 8192);
    assert.equal(across.status, BLK_S.IOERR);
    assert.ok(across.data.every((byte) => byte === untouched || byte === 0x11));
    const before = await client.read((512 << 10) - 4096, 4096);
    assert.equal(before.status, BLK_S.OK);
    assert.ok(before.data.every((byte) => byte === 0x11));
    assert.equal(device.statistics.errors, 2);
    await close();
  });
}
