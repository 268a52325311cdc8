/** A disk moves to an NBD server of somebody else while it is written. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { MirrorCopyMode } from '../../src/daemon/jobs/mirror-job.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { testRandom } from '../support/random.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { ServerProcess } from './nbd-servers.js';

const size = 32 << 20;
const writers = 8;
const part = size / writers;

for (const copyMode of ['background', 'write-blocking'] as MirrorCopyMode[]) {
  test(`from a file to qemu-nbd, ${copyMode}: no error, and nothing is lost`, async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const directory = makeTempDir();
    const [source, target, socket] = ['source', 'target', 'socket'].map((name) => join(directory, name));
    for (const path of [source, target]) {
      makeSparseFile(path, size);
    }
    const server = await ServerProcess.start(
      'qemu-nbd',
      ['--format=raw', `--socket=${socket}`, '--persistent', '--shared=8', '--discard=unmap', target],
      () => existsSync(socket),
    );
    const disks = new DaemonDisks();
    try {
      const { daemon } = disks;
      await daemon.addNode({ driver: 'file', nodeName: 'source', filename: source });
      await daemon.addNode({ driver: 'nbd', nodeName: 'target', server: { type: 'unix', path: socket } });
      const disk = await disks.export('source', { queueCount: 2 });
      const model = new Uint8Array(size);
      let going = true;
      const load = Array.from({ length: writers }, async (_, writer) => {
        while (going) {
          const data = new Uint8Array(4096 * random.between(1, 16)).fill(random.between(0, 255));
          const offset = writer * part + 4096 * random.between(0, (part - data.length) / 4096);
          await disk.write(offset, data);
          model.set(data, offset);
          if (copyMode === 'background') {
            // A disk that is written faster than it is copied is never the same: no job of this kind ends then.
            await delay(random.between(1, 4));
          }
        }
      });
      const job = await daemon.startMirror({
        jobId: 'move',
        device: 'source',
        target: 'target',
        sync: 'full',
        copyMode,
      });
      while (!job.isReady) {
        assert.notEqual(job.status, 'null', job.error);
        await delay(5);
      }
      job.complete();
      await job.ended;
      assert.equal(job.error, undefined);
      await delay(100);
      going = false;
      await Promise.all(load);
      await disk.flush();
      assert.equal(daemon.exports[0].node.nodeName, 'target');
      assert.ok(readFileSync(target).equals(model), 'the server has what was written');
    } finally {
      await disks.close();
      await server.kill('SIGTERM');
    }
  });
}
