/** A disk moves from a file to a Ceph image while fio writes and verifies it, and goes on from there. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { openBlockNode } from '../../src/block/open.js';
import type { MirrorCopyMode } from '../../src/daemon/jobs/mirror-job.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { CephCluster, missingCephProgram } from '../support/ceph-cluster.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { runProgram } from './programs.js';

const mebibyte = 1 << 20;
const size = 64 * mebibyte;
const missing = missingCephProgram();
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;

/** Writes a good part of the disk at random, and reads back what was written. */
function verify(uri: string): Promise<string> {
  return runProgram('fio', [
    '--name=verify',
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--rw=randwrite',
    '--bsrange=4k-64k',
    '--iodepth=16',
    `--size=${size}`,
    `--io_size=${size / 4}`,
    '--verify=crc32c',
    '--verify_fatal=1',
    '--randrepeat=0',
  ]);
}

describe('blockdev-mirror from a file to rbd', { skip, timeout: 240_000 }, () => {
  for (const copyMode of ['background', 'write-blocking'] as MirrorCopyMode[]) {
    test(`${copyMode}, under fio: no error, and the export goes on from rbd`, async (t) => {
      const cluster = await CephCluster.start();
      const directory = makeTempDir();
      const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
      try {
        const [source, socket, exported] = ['source', 'nbd', 'exported'].map((name) => join(directory, name));
        makeSparseFile(source, size);
        await cluster.rbd('create', '--size', `${size / mebibyte}M`, 'target');
        await daemon.addNode({ driver: 'file', nodeName: 'file', filename: source, discard: 'unmap' });
        await daemon.addNode({
          driver: 'rbd',
          nodeName: 'rbd',
          pool: cluster.pool,
          image: 'target',
          conf: cluster.conf,
          discard: 'unmap',
        });
        await daemon.startNbdServer({ address: { type: 'unix', path: socket } });
        await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'file', name: '', writable: true });
        const uri = `nbd+unix:///?socket=${socket}`;
        let isMoved = false;
        const load = (async () => {
          let runs = 0;
          do {
            assert.match(await verify(uri), /err= 0/);
            runs++;
          } while (!isMoved);
          return runs;
        })();
        await delay(300);
        const job = await daemon.startMirror({
          jobId: 'move',
          device: 'file',
          target: 'rbd',
          sync: 'full',
          copyMode,
        });
        for (; !job.isReady; await delay(10)) {
          assert.notEqual(job.status, 'null', job.error);
        }
        job.complete();
        await job.ended;
        assert.equal(job.error, undefined);
        assert.equal(daemon.exports[0].node.nodeName, 'rbd');
        await daemon.deleteNode('file');
        isMoved = true;
        t.diagnostic(`${await load} runs of fio`);
        // All of this one is on rbd.
        assert.match(await verify(uri), /err= 0/);
        const read = join(directory, 'read');
        await runProgram('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, read]);
        await daemon.deleteExport('e', 'hard');
        await daemon.deleteNode('rbd');
        await cluster.rbd('export', '--no-progress', 'target', exported);
        assert.ok(readFileSync(exported).equals(readFileSync(read)), 'rbd has what the export had');
      } finally {
        await daemon.close();
        await cluster.stop();
      }
    });
  }
});
