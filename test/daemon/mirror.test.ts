/** A disk moves to another node while it is written through a real device queue; an array knows what is on it. */
import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { Job } from '../../src/daemon/jobs/job.js';
import type { MirrorCopyMode } from '../../src/daemon/jobs/mirror-job.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import type { BlkFrontend } from '../../src/software-vduse/blk-frontend.js';
import { QmpClient } from '../qmp/client.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { type Random, testRandom } from '../support/random.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const size = 8 * MiB;
const directory = makeTempDir();
let images = 0;
let disks: DaemonDisks;
let daemon: StorageDaemon;

beforeEach(() => {
  disks = new DaemonDisks();
  daemon = disks.daemon;
});

afterEach(() => disks.close());

function image(bytes = size): string {
  return makeSparseFile(join(directory, `image-${images++}`), bytes);
}

async function until(job: Job, isThere: () => boolean): Promise<void> {
  while (!isThere()) {
    assert.notEqual(job.status, 'null', `the job has ended: ${job.error}`);
    await delay(2);
  }
}

/** Writes, zeroes, discards and reads at random, several at once, each in a part of the disk of its own. */
class RandomLoad {
  readonly model = new Uint8Array(size);
  requests = 0;
  #going = true;
  readonly #disk: BlkFrontend;
  readonly #workers: Promise<void>[];

  constructor(disk: BlkFrontend, random: Random, workers = 4) {
    this.#disk = disk;
    this.#workers = Array.from({ length: workers }, (_, n) => this.#work(random, n, size / workers));
  }

  async stop(): Promise<void> {
    this.#going = false;
    await Promise.all(this.#workers);
  }

  async #work(random: Random, worker: number, part: number): Promise<void> {
    while (this.#going) {
      const length = 512 * random.between(1, 200);
      const offset = worker * part + 512 * random.between(0, (part - length) / 512);
      const kind = random.between(0, 9);
      if (kind < 6) {
        const data = new Uint8Array(length).fill(random.between(0, 255));
        await this.#disk.write(offset, data);
        this.model.set(data, offset);
      } else if (kind < 8) {
        await this.#disk.writeZeroes(offset, length, { unmap: kind === 7 });
        this.model.fill(0, offset, offset + length);
      } else {
        const read = new Uint8Array(length);
        await this.#disk.read(offset, read);
        assert.deepEqual(read, this.model.slice(offset, offset + length));
      }
      this.requests++;
    }
  }
}

async function assertContent(disk: BlkFrontend, model: Uint8Array): Promise<void> {
  const content = new Uint8Array(size);
  for (let at = 0; at < size; at += MiB) {
    const part = new Uint8Array(MiB);
    await disk.read(at, part);
    content.set(part, at);
  }
  assert.ok(Buffer.from(content).equals(model), 'the disk holds what was written');
}

async function addFiles(): Promise<{ source: string; target: string }> {
  const paths = { source: image(), target: image() };
  for (const [nodeName, filename] of Object.entries(paths)) {
    await daemon.addNode({ driver: 'file', nodeName, filename, discard: 'unmap' });
  }
  return paths;
}

describe('a mirror', () => {
  for (const copyMode of ['background', 'write-blocking'] as MirrorCopyMode[]) {
    for (const queueCount of [1, 2]) {
      test(`${copyMode}, ${queueCount} queues: nothing is lost, and the disk goes on from the target`, async (t) => {
        const random = testRandom();
        t.diagnostic(`seed ${random.seed}`);
        const paths = await addFiles();
        const disk = await disks.export('source', { queueCount });
        const load = new RandomLoad(disk, random);
        while (load.requests < 50) {
          await delay(1);
        }
        const job = await daemon.startMirror({
          jobId: 'move',
          device: 'source',
          target: 'target',
          sync: 'full',
          copyMode,
          granularity: random.pick([512, 4096, 65_536]),
        });
        await until(job, () => job.isReady);
        const ready = load.requests;
        await until(job, () => load.requests > ready + 100);
        job.complete();
        await job.ended;
        assert.equal(job.error, undefined);
        const moved = load.requests;
        while (load.requests < moved + 50) {
          await delay(1);
        }
        await load.stop();
        assert.equal(daemon.exports[0].node.nodeName, 'target');
        await assertContent(disk, load.model);
        assert.ok(readFileSync(paths.target).equals(load.model), 'the target holds it');
        // The source is free, and has what it had when the disk moved.
        await daemon.deleteNode('source');
        await assert.rejects(daemon.deleteNode('target'), { message: 'Node target is in use' });
        await daemon.deleteExport('export-source', 'hard');
        await daemon.deleteNode('target');
      });
    }
  }

  test('of a node below another one moves what is between along', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const paths = await addFiles();
    await daemon.addNode({ driver: 'raw', nodeName: 'top', file: 'source', discard: 'unmap' });
    const disk = await disks.export('top');
    const load = new RandomLoad(disk, random);
    const job = await daemon.startMirror({ jobId: 'j', device: 'source', target: 'target', sync: 'full' });
    await assert.rejects(daemon.resizeNode({ nodeName: 'top', size: 2 * size }), { code: 'BUSY' });
    await assert.rejects(daemon.deleteNode('source'), { code: 'BUSY' });
    await until(job, () => job.isReady);
    job.complete();
    await job.ended;
    assert.equal(job.error, undefined);
    await load.stop();
    await assertContent(disk, load.model);
    assert.ok(readFileSync(paths.target).equals(load.model));
    await daemon.deleteNode('source');
  });

  test('copies no hole and no zeroes', async () => {
    const paths = await addFiles();
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(4096).fill(1));
    await disk.write(4 * MiB, new Uint8Array(MiB));
    await disk.write(6 * MiB, new Uint8Array(4096).fill(2));
    const job = await daemon.startMirror({ jobId: 'j', device: 'source', target: 'target', sync: 'full' });
    await until(job, () => job.isReady);
    assert.ok(job.total >= size, `${job.current} of ${job.total}`);
    job.complete();
    await job.ended;
    assert.deepEqual([job.current, job.total], [size, size]);
    assert.ok(readFileSync(paths.source).equals(readFileSync(paths.target)));
    assert.ok(statSync(paths.target).blocks * 512 <= 256 << 10, `${statSync(paths.target).blocks} blocks`);
  });

  test('that is cancelled leaves the disk where it was; one that is ready may leave an equal copy', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const paths = await addFiles();
    const disk = await disks.export('source');
    const load = new RandomLoad(disk, random);
    const options = { device: 'source', target: 'target', sync: 'full', autoDismiss: false } as const;
    const slow = await daemon.startMirror({ ...options, jobId: 'slow', speed: MiB });
    assert.throws(() => slow.complete(), {
      message: "Job 'slow' in state 'running' cannot accept command verb 'complete'",
    });
    slow.cancel({ force: false });
    await slow.ended;
    assert.deepEqual([slow.status, slow.error], ['concluded', 'Operation canceled']);
    const job = await daemon.startMirror({ ...options, jobId: 'copy' });
    await until(job, () => job.isReady);
    await load.stop();
    job.cancel({ force: false });
    await job.ended;
    assert.deepEqual([job.status, job.error], ['concluded', undefined]);
    assert.equal(daemon.exports[0].node.nodeName, 'source');
    await disk.write(0, new Uint8Array(512).fill(9));
    assert.ok(readFileSync(paths.target).equals(load.model), 'the copy is of the moment of the end');
    daemon.jobs.dismiss('slow');
    assert.deepEqual(
      daemon.jobs.jobs.map(({ id }) => id),
      ['copy'],
    );
  });

  test('waits where it is told to', async () => {
    await addFiles();
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(4096).fill(1));
    const job = await daemon.startMirror({
      jobId: 'j',
      device: 'source',
      target: 'target',
      sync: 'full',
      autoFinalize: false,
    });
    await until(job, () => job.isReady);
    job.pause();
    assert.equal(job.status, 'standby');
    job.resume();
    job.complete();
    await until(job, () => job.status === 'pending');
    await disk.write(0, new Uint8Array(4096).fill(2));
    assert.equal(daemon.exports[0].node.nodeName, 'source');
    job.finalize();
    await job.ended;
    const back = new Uint8Array(4096);
    await disk.read(0, back);
    assert.deepEqual(back, new Uint8Array(4096).fill(2));
    assert.equal(daemon.exports[0].node.nodeName, 'target');
  });

  test("is driven by QMP as QEMU's, with its events", async () => {
    await addFiles();
    await disks.export('source');
    const path = join(directory, 'qmp.sock');
    await daemon.startMonitor(path);
    const client = await QmpClient.open(path);
    const events: unknown[] = [];
    const readUntil = async (status: string): Promise<void> => {
      for (;;) {
        const { event, data } = (await client.read()) as { event: string; data: Record<string, unknown> };
        events.push(event === 'JOB_STATUS_CHANGE' ? data['status'] : [event, data]);
        if (data['status'] === status || event === status) {
          return;
        }
      }
    };
    const mirror = { 'job-id': 'j', device: 'source', target: 'target', sync: 'full' };
    client.send(`${JSON.stringify({ execute: 'blockdev-mirror', arguments: mirror })}\n`);
    const answers: unknown[] = [];
    while (events.at(-1) !== 'ready') {
      const message = await client.read();
      if ('return' in message) {
        answers.push(message['return']);
      } else {
        const { data } = message as { data: Record<string, unknown> };
        events.push(data['status']);
      }
    }
    assert.deepEqual([answers, events], [[{}], ['created', 'running', 'ready']]);
    events.length = 0;
    await readUntil('BLOCK_JOB_READY');
    client.send('{"execute":"job-complete","arguments":{"id":"j"}}\n');
    assert.deepEqual(await client.read(), { return: {} });
    await readUntil('null');
    const end = { type: 'mirror', device: 'j', len: size, offset: size, speed: 0 };
    assert.deepEqual(events.slice(1), [
      'waiting',
      'pending',
      ['BLOCK_JOB_COMPLETED', end],
      'concluded',
      'null',
    ]);
    assert.deepEqual(await client.execute('job-cancel', { id: 'j' }), {
      error: { class: 'GenericError', desc: 'Job not found' },
    });
    assert.deepEqual(await client.execute('block-job-cancel', { device: 'j' }), {
      error: { class: 'DeviceNotActive', desc: "Block job 'j' not found" },
    });
    client.close();
  });

  test('ends with the daemon', async () => {
    await addFiles();
    await disks.export('source');
    const job = await daemon.startMirror({
      jobId: 'j',
      device: 'source',
      target: 'target',
      sync: 'full',
      speed: MiB,
    });
    await daemon.close();
    assert.equal(job.status, 'null');
  });

  test('is refused for nodes that do not go together', async () => {
    await addFiles();
    await daemon.addNode({ driver: 'memory', nodeName: 'small', size: MiB });
    await daemon.addNode({ driver: 'memory', nodeName: 'used', size });
    await disks.export('used', { writable: false });
    const start = (target: string, more: object = {}) =>
      daemon.startMirror({ jobId: 'j', device: 'source', target, sync: 'full', ...more });
    await assert.rejects(start('source'), { message: "Can't mirror node into itself" });
    await assert.rejects(start('small'), { message: 'Source and target image have different sizes' });
    await assert.rejects(start('none'), { code: 'NOT_FOUND' });
    await assert.rejects(start('used'), { code: 'BUSY', message: /permissions 'consistent read'/ });
    await assert.rejects(start('target', { granularity: 5000 }), { code: 'INVALID_ARGUMENT' });
    assert.deepEqual(daemon.jobs.jobs, []);
    await daemon.deleteNode('target');
    await daemon.deleteNode('source');
  });

  test('takes nothing for zero where a write to the target failed', async () => {
    const paths = { source: image(), file: image() };
    for (const [nodeName, filename] of Object.entries(paths)) {
      await daemon.addNode({ driver: 'file', nodeName, filename, discard: 'unmap' });
    }
    const rules = [{ on: 'write', effect: 'late-error', times: 1 }] as const;
    await daemon.addNode({ driver: 'fault', nodeName: 'target', file: 'file', rules });
    const disk = await disks.export('source');
    await disk.write(MiB, new Uint8Array(4096).fill(7));
    const request = { jobId: 'j', device: 'source', target: 'target', sync: 'full' } as const;
    const job = await daemon.startMirror({ ...request, onTargetError: 'stop' });
    await until(job, () => job.status === 'paused');
    await disk.writeZeroes(MiB, 4096, { unmap: false });
    job.resume();
    await until(job, () => job.isReady);
    job.complete();
    await job.ended;
    assert.equal(job.error, undefined);
    assert.ok(readFileSync(paths.file).every((byte) => byte === 0));
  });
});
