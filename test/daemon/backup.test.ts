/** A disk is copied as it is at one moment while it is written through real device queues. */
import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { FaultRuleOptions } from '../../src/block/node.js';
import type { Job, JobStatus } from '../../src/daemon/jobs/job.js';
import type { BackupRequest, StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { QmpClient } from '../qmp/client.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { testRandom } from '../support/random.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { TaggedLoad } from '../support/tagged-load.js';
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

async function addFile(nodeName: string, bytes = size): Promise<string> {
  const filename = makeSparseFile(join(directory, `image-${images++}`), bytes);
  await daemon.addNode({ driver: 'file', nodeName, filename, discard: 'unmap' });
  return filename;
}

/** A filter above a node that fails by rules. */
async function addFault(nodeName: string, file: string, rules: FaultRuleOptions[]): Promise<void> {
  await daemon.addNode({ driver: 'fault', nodeName, file, rules });
}

async function start(request: Partial<BackupRequest> = {}): Promise<Job> {
  const [job] = await daemon.startBackups([
    { jobId: 'j', device: 'source', target: 'target', sync: 'full', ...request },
  ]);
  return job;
}

async function until(isThere: () => boolean): Promise<void> {
  while (!isThere()) {
    await delay(2);
  }
}

async function hasStatus(job: Job, status: JobStatus): Promise<void> {
  await until(() => {
    assert.ok(job.status === status || job.status !== 'null', `the job has ended: ${job.error}`);
    return job.status === status;
  });
}

describe('a backup', () => {
  for (const queueCount of [1, 2]) {
    for (const speed of [0, 4 * MiB]) {
      test(`is of the moment of its start: ${queueCount} queues, ${speed} bytes a second`, async (t) => {
        const random = testRandom();
        t.diagnostic(`seed ${random.seed}`);
        await addFile('source');
        const target = await addFile('target');
        const disk = await disks.export('source', { queueCount });
        const load = new TaggedLoad(disk, random);
        await until(() => load.requests > 100);
        const calledAt = load.now;
        const job = await start({ speed });
        const startedAt = load.now;
        await until(() => load.requests > 400 || job.status === 'null');
        if (job.status !== 'null') {
          job.setSpeed(0);
        }
        await job.ended;
        assert.equal(job.error, undefined);
        assert.deepEqual([job.current, job.total], [size, size]);
        const copied = load.requests;
        await until(() => load.requests > copied + 20);
        await load.stop();
        load.checkSnapshot(readFileSync(target), { calledAt, startedAt });
        await load.checkDisk();
        await daemon.deleteNode('target');
      });
    }
  }

  test('of two disks in a transaction is of one moment, and two of one disk are equal', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    await addFile('source');
    const targets = [await addFile('first'), await addFile('second')];
    const disk = await disks.export('source');
    const load = new TaggedLoad(disk, random);
    await until(() => load.requests > 50);
    const request = { device: 'source', sync: 'full' } as const;
    const jobs = await daemon.startBackups([
      { ...request, jobId: 'a', target: 'first', speed: 8 * MiB },
      { ...request, jobId: 'b', target: 'second' },
    ]);
    await Promise.all(jobs.map(({ ended }) => ended));
    await load.stop();
    assert.deepEqual(
      jobs.map(({ error }) => error),
      [undefined, undefined],
    );
    assert.ok(readFileSync(targets[0]).equals(readFileSync(targets[1])));
    await load.checkDisk();
  });

  test('of nothing but what is overwritten keeps its old content', async () => {
    await addFile('source');
    const target = await addFile('target');
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(2 * MiB).fill(1));
    const job = await start({ sync: 'none' });
    await disk.write(65_536 - 512, new Uint8Array(1024).fill(2));
    await disk.discard(MiB, 65_536);
    await disk.writeZeroes(MiB + 3 * 65_536, 512, { unmap: false });
    const copy = readFileSync(target);
    const isCopied = (cluster: number) => copy[cluster * 65_536] === 1;
    assert.deepEqual(Array.from({ length: 32 }, (_, cluster) => cluster).filter(isCopied), [0, 1, 16, 19]);
    assert.equal(job.current, 4 * 65_536);
    job.cancel({ force: false });
    await job.ended;
    assert.equal(job.error, 'Operation canceled');
  });

  test('copies no hole and no zeroes', async () => {
    const source = await addFile('source');
    const target = await addFile('target');
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(4096).fill(1));
    await disk.write(4 * MiB, new Uint8Array(MiB));
    const job = await start();
    await job.ended;
    assert.ok(readFileSync(source).equals(readFileSync(target)));
    assert.ok(statSync(target).blocks * 512 <= 128 << 10);
  });

  test('goes on below a node that changes', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const filename = await addFile('file');
    const target = await addFile('target');
    await daemon.addNode({ driver: 'raw', nodeName: 'source', file: 'file', discard: 'unmap' });
    const disk = await disks.export('source');
    const load = new TaggedLoad(disk, random);
    const calledAt = load.now;
    const job = await start({ speed: 4 * MiB });
    const startedAt = load.now;
    for (const aio of ['threads', 'io_uring'] as const) {
      await daemon.reopenNodes([{ driver: 'file', nodeName: 'file', filename, discard: 'unmap', aio }]);
    }
    await assert.rejects(daemon.deleteNode('target'), { code: 'BUSY' });
    job.setSpeed(0);
    await job.ended;
    await load.stop();
    assert.equal(job.error, undefined);
    load.checkSnapshot(readFileSync(target), { calledAt, startedAt });
  });

  test('bears nobody who writes below its source, past it', async () => {
    const filename = await addFile('file');
    const target = await addFile('target');
    await daemon.addNode({ driver: 'raw', nodeName: 'source', file: 'file', discard: 'unmap' });
    const conflict = { code: 'BUSY', message: /'write' are both required .* and unshared by node 'source'/ };
    await disks.export('file');
    await assert.rejects(start(), conflict);
    await daemon.deleteExport('export-file', 'hard');
    const job = await start({ speed: 1 });
    await assert.rejects(disks.export('file'), conflict);
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(4096).fill(1));
    job.setSpeed(0);
    await job.ended;
    assert.equal(job.error, undefined);
    assert.ok(readFileSync(target).every((byte) => byte === 0));
    assert.equal(readFileSync(filename)[0], 1);
    await disks.export('file');
  });

  test('that is cancelled lets the disk go on', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    await addFile('source');
    await addFile('target');
    const disk = await disks.export('source', { queueCount: 2 });
    const load = new TaggedLoad(disk, random);
    for (let n = 0; n < 5; n++) {
      const job = await start({ speed: 1 });
      const { requests } = load;
      await until(() => load.requests > requests + 10);
      job.pause();
      await until(() => load.requests > requests + 20);
      job.cancel({ force: true });
      await job.ended;
      assert.equal(job.status, 'null');
    }
    await load.stop();
    await load.checkDisk();
  });

  test('ends with the daemon', async () => {
    await addFile('source');
    await addFile('target');
    await disks.export('source');
    const job = await start({ speed: 1 });
    await daemon.close();
    assert.equal(job.status, 'null');
  });
});

describe('a backup whose target fails', () => {
  test('fails, and never the disk', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    await addFile('source');
    await addFile('file');
    await addFault('target', 'file', [{ on: 'write', effect: 'error', errno: 28, after: 20 }]);
    const disk = await disks.export('source', { queueCount: 2 });
    const load = new TaggedLoad(disk, random);
    await until(() => load.requests > 50);
    const job = await start({ sync: 'none', autoDismiss: false });
    await job.ended;
    assert.match(job.error ?? '', /write on block node 'target': no space left on device \(ENOSPC\)/);
    const { requests } = load;
    await until(() => load.requests > requests + 50);
    await load.stop();
    await load.checkDisk();
  });

  test('stops, and goes on when it is resumed', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    await addFile('source');
    const target = await addFile('file');
    await addFault('target', 'file', [{ on: 'write', effect: 'error', errno: 28, after: 3, times: 12 }]);
    const disk = await disks.export('source', { queueCount: 2 });
    const load = new TaggedLoad(disk, random);
    await until(() => load.requests > 100);
    const calledAt = load.now;
    const job = await start({ onTargetError: 'enospc' });
    const startedAt = load.now;
    let stops = 0;
    while (job.status !== 'null') {
      if (job.status === 'paused') {
        assert.equal(job.ioStatus, 'nospace');
        stops++;
        job.resume();
      }
      await delay(1);
    }
    assert.equal(job.error, undefined);
    assert.ok(stops >= 1);
    await load.stop();
    load.checkSnapshot(readFileSync(target), { calledAt, startedAt });
  });

  test('tries again where errors are ignored', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    await addFile('file');
    const target = await addFile('target');
    await addFault('source', 'file', [{ on: 'read', effect: 'error', after: 2, times: 2 }]);
    const disk = await disks.export('source');
    await disk.write(0, new Uint8Array(4 * MiB).fill(7));
    const job = await start({ onSourceError: 'ignore' });
    await job.ended;
    assert.equal(job.error, undefined);
    assert.equal(readFileSync(target).indexOf(0), 4 * MiB);
  });
});

test('QMP clients hear of errors, and of what became of the job', async () => {
  await addFile('source');
  await addFile('file');
  await addFault('target', 'file', [{ on: 'write', effect: 'error', errno: 28, times: 1 }]);
  const disk = await disks.export('source');
  await disk.write(0, new Uint8Array(4096).fill(1));
  const path = join(directory, 'qmp');
  await daemon.startMonitor(path);
  const client = await QmpClient.open(path);
  const heard: unknown[] = [];
  const until = async (status: string): Promise<void> => {
    for (;;) {
      const { event, data } = (await client.read()) as { event?: string; data: Record<string, unknown> };
      if (event !== undefined) {
        heard.push(event === 'JOB_STATUS_CHANGE' ? data['status'] : [event, data]);
      }
      if (data?.['status'] === status) {
        return;
      }
    }
  };
  const backup = {
    'job-id': 'j',
    device: 'source',
    target: 'target',
    sync: 'full',
    'on-target-error': 'stop',
  };
  client.send(`${JSON.stringify({ execute: 'blockdev-backup', arguments: backup })}\n`);
  await until('paused');
  assert.deepEqual(heard, [
    'created',
    'running',
    ['BLOCK_JOB_ERROR', { device: 'j', operation: 'write', action: 'stop' }],
    'paused',
  ]);
  client.send('{"execute":"query-block-jobs"}\n');
  let answer = await client.read();
  while (!Array.isArray(answer['return'])) {
    // The backup's own.
    answer = await client.read();
  }
  const [info] = answer['return'] as Record<string, unknown>[];
  assert.deepEqual([info['io-status'], info['paused'], info['busy']], ['nospace', true, false]);
  client.send('{"execute":"block-job-resume","arguments":{"device":"j"}}\n');
  heard.length = 0;
  await until('null');
  const end = { type: 'backup', device: 'j', len: size, offset: size, speed: 0 };
  assert.deepEqual(heard, [
    'running',
    'waiting',
    'pending',
    ['BLOCK_JOB_COMPLETED', end],
    'concluded',
    'null',
  ]);
  client.close();
});

describe('backups that can not be', () => {
  test('are refused, and leave nothing behind', async () => {
    await addFile('source');
    await addFile('target');
    await addFile('other');
    await addFile('small', MiB);
    const request = { jobId: 'j', device: 'source', target: 'target' };
    const refused: [Partial<BackupRequest>, object][] = [
      [{ target: 'source' }, { message: 'Source and target cannot be the same' }],
      [{ target: 'small' }, { message: 'Source and target image have different sizes' }],
      [{ device: 'none' }, { code: 'NOT_FOUND' }],
      [{ jobId: '' }, { message: "Invalid job ID ''" }],
      [{ sync: 'incremental' }, { message: "must provide a valid bitmap name for 'incremental' sync mode" }],
      [{ sync: 'bitmap', bitmap: 'b' }, { message: "Bitmap 'b' could not be found" }],
      [{ compress: true }, { code: 'NOT_SUPPORTED' }],
      [{ workers: 0 }, { message: 'max-workers must be between 1 and 2147483647' }],
      [{ filterNodeName: 'target' }, { code: 'ALREADY_EXISTS' }],
      [{ speed: -1 }, { message: "Parameter 'speed' expects a non-negative value" }],
    ];
    for (const [wrong, expected] of refused) {
      await assert.rejects(start({ ...request, ...wrong }), expected);
      // All or none.
      await assert.rejects(
        daemon.startBackups([
          { ...request, sync: 'full', jobId: 'good', target: 'other' },
          { ...request, sync: 'full', ...wrong },
        ]),
      );
    }
    assert.deepEqual(daemon.jobs.jobs, []);
    for (const node of ['source', 'target', 'other']) {
      await daemon.deleteNode(node);
    }
  });

  test('are those of nodes that jobs work on', async () => {
    for (const name of ['source', 'target', 'third']) {
      await addFile(name);
    }
    const job = await start({ speed: 1 });
    const busy = { message: "Node 'target' is busy: block device is in use by block job: backup" };
    await assert.rejects(start({ jobId: 'k', device: 'third' }), busy);
    await assert.rejects(start({ jobId: 'k', device: 'target', target: 'third' }), busy);
    await assert.rejects(
      daemon.startMirror({ jobId: 'm', device: 'source', target: 'third', sync: 'full' }),
      { code: 'BUSY' },
    );
    job.cancel({ force: true });
    await job.ended;
  });
});

describe('backups in a group', () => {
  async function addPairs(): Promise<void> {
    for (const name of ['a', 'b', 'ta', 'tb']) {
      await addFile(name);
    }
  }
  const pair = (name: string, more: Partial<BackupRequest> = {}): BackupRequest => ({
    jobId: `job-${name}`,
    device: name,
    target: `t${name}`,
    sync: 'full',
    autoDismiss: false,
    ...more,
  });

  test('wait for each other', async () => {
    await addPairs();
    const [fast, slow] = await daemon.startBackups([pair('a'), pair('b', { speed: 4 * MiB })], {
      grouped: true,
    });
    await hasStatus(fast, 'waiting');
    assert.equal(slow.status, 'running');
    slow.setSpeed(0);
    await Promise.all([fast.ended, slow.ended]);
    assert.deepEqual([fast.error, slow.error], [undefined, undefined]);
  });

  test('end together when one is cancelled', async () => {
    await addPairs();
    const [fast, slow] = await daemon.startBackups([pair('a'), pair('b', { speed: 1 })], { grouped: true });
    await hasStatus(fast, 'waiting');
    slow.cancel({ force: false });
    await Promise.all([fast.ended, slow.ended]);
    assert.deepEqual([fast.error, slow.error], ['Operation canceled', 'Operation canceled']);
  });

  test('take effect together', async () => {
    await addPairs();
    const [first, second] = await daemon.startBackups([pair('a'), pair('b', { autoFinalize: false })], {
      grouped: true,
    });
    await hasStatus(first, 'pending');
    await hasStatus(second, 'pending');
    first.finalize();
    await Promise.all([first.ended, second.ended]);
    assert.deepEqual([first.error, second.error], [undefined, undefined]);
  });
});
