/** A disk of the user's own that can not be: what was opened for it is closed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { defineBlockDriver } from '../../src/block/define-block-driver.js';
import { exportDisk } from '../../src/daemon/export-disk.js';

test('a device that is refused is closed', async () => {
  let closed = 0;
  const source = defineBlockDriver({
    name: 'odd',
    open: (size: number) => ({
      size,
      read: async () => {},
      close: async () => {
        closed++;
      },
    }),
  });
  await assert.rejects(exportDisk(source(1000)), { code: 'INVALID_ARGUMENT', message: /'odd'.*1000/ });
  assert.equal(closed, 1);
});
