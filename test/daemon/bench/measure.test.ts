/** Measurements of nodes on threads of their own and on the main thread. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { openLocalNode } from '../../../src/block/drivers/local-node.js';
import type { BlockNode } from '../../../src/block/node.js';
import { openBlockNode } from '../../../src/block/open.js';
import { LoadCounters } from '../../../src/daemon/bench/load-counters.js';
import { type Measurement, measure } from '../../../src/daemon/bench/measure.js';
import { MemoryDisk } from '../../support/memory-disk.js';
import { openFdCount } from '../../support/resources.js';
import { makeSparseFile } from '../../support/sparse-file.js';
import { makeTempDir } from '../../support/temp-dir.js';
import { until } from '../../support/within.js';

const MiB = 1 << 20;

function run(node: BlockNode, more: object = {}, jobs = 1, signal = new AbortController().signal) {
  const job = {
    isRandom: true,
    readPercent: 100,
    blockBytes: 4096,
    depth: 4,
    offset: 0,
    blocks: node.size / 4096,
    firstBlock: 0,
    rampMs: 0,
    runtimeMs: 100,
    ...more,
  };
  return measure({
    engine: node.engine,
    jobs: Array.from({ length: jobs }, () => job),
    signal,
    onLook: () => undefined,
  });
}

function assertPlausible({ read, write, cpu }: Measurement): void {
  for (const { ios, bytes, meanUs, p50Us, p99Us, p999Us, maxUs } of [read, write]) {
    assert.equal(bytes, ios * 4096);
    assert.ok(p50Us <= p99Us && p99Us <= p999Us && p999Us <= maxUs);
    assert.ok(ios === 0 || (meanUs > 0 && meanUs <= maxUs));
  }
  assert.ok(cpu.userUs + cpu.systemUs > 0);
}

describe('a measurement', () => {
  test('reads on threads, one a job, and leaves nothing behind', async () => {
    const path = makeSparseFile(join(makeTempDir(), 'disk'), MiB);
    const fds = openFdCount();
    const node = await openBlockNode({ driver: 'file', nodeName: 'n', filename: path, readOnly: true });
    const result = await run(node, { rampMs: 20 }, 2);
    await node.close();
    assertPlausible(result);
    assert.ok(result.read.ios > 0);
    assert.deepEqual([result.write.ios, result.errors, result.firstErrno], [0, 0, 0]);
    assert.ok(result.seconds >= 0.05, `${result.seconds}`);
    await until('descriptors to be closed', () => openFdCount() === fds);
  });

  test('of an engine that answers at once', async () => {
    const node = await openBlockNode({ driver: 'null-co', nodeName: 'n', size: MiB });
    const result = await run(node, { readPercent: 50 });
    assertPlausible(result);
    const { read, write } = result;
    // A thread that slept though there is room for requests would make a handful, which may fall to one side.
    assert.ok(read.ios + write.ios > 64, `${read.ios} and ${write.ios}`);
    assert.ok(Math.min(read.ios, write.ios) > 0);
  });

  test('of a block driver on the main thread works where it is told to', async () => {
    const disk = new MemoryDisk({ size: MiB });
    const node = openLocalNode({ nodeName: 'n', driver: 'array', device: disk });
    const part = { offset: 64 * 4096, blocks: 16, readPercent: 0, isRandom: false };
    assertPlausible(await run(node, part, 2));
    const written = disk.calls.filter(({ call }) => call === 'write');
    assert.ok(written.length > 16);
    const offsets = written.map(({ offset }) => offset);
    assert.equal(Math.min(...offsets), 64 * 4096);
    assert.equal(Math.max(...offsets), 79 * 4096);
    assert.ok(disk.bytes.subarray(64 * 4096, 80 * 4096).some((byte) => byte !== 0));
    assert.ok(disk.bytes.subarray(0, 64 * 4096).every((byte) => byte === 0));
    assert.ok(disk.bytes.subarray(80 * 4096).every((byte) => byte === 0));
  });

  test('counts what fails, and ends early when it is told to', async () => {
    const disk = new MemoryDisk({ size: MiB });
    disk.failure = new Error('broken');
    const node = openLocalNode({ nodeName: 'n', driver: 'array', device: disk });
    const failed = await run(node);
    assert.equal(failed.read.ios, 0);
    assert.ok(failed.errors > 0);
    assert.equal(failed.firstErrno, 5);
    disk.failure = undefined;
    const end = new AbortController();
    setTimeout(() => end.abort(), 50);
    const result = await run(node, { runtimeMs: 60_000 }, 1, end.signal);
    assert.ok(result.seconds < 30 && result.read.ios > 0);
  });
});

describe('counters', () => {
  const counters = () => [0, 1].map((job) => new LoadCounters(buffer, job));
  const buffer = new SharedArrayBuffer(LoadCounters.bytesFor(2));

  test('tell percentiles within 3 %, of all jobs together', () => {
    const [one, other] = counters();
    for (let n = 1; n <= 10_000; n++) {
      (n % 2 === 0 ? one : other).count(false, 512, n / 100);
    }
    one.count(true, 4096, 1e9);
    one.count(true, 4096, -1);
    const read = LoadCounters.figures(counters(), false);
    assert.deepEqual([read.ios, read.bytes, read.maxUs], [10_000, 5_120_000, 100_000]);
    for (const [got, want] of [
      [read.p50Us, 50_000],
      [read.p99Us, 99_000],
      [read.p999Us, 99_900],
      [read.meanUs, 50_005],
    ]) {
      assert.ok(Math.abs(got / want - 1) < 0.03, `${got} is not ${want}`);
    }
    const write = LoadCounters.figures(counters(), true);
    assert.deepEqual([write.ios, write.bytes], [2, 8192]);
    assert.ok(write.p50Us < 0.1 && write.p99Us > 1e8);
    assert.deepEqual([one.ios, one.bytes, other.errors], [5002, 5000 * 512 + 8192, 0]);
  });

  test('keep the first error', () => {
    const [one] = counters();
    one.countError(28);
    one.countError(5);
    assert.deepEqual([one.errors, one.firstErrno], [2, 28]);
  });
});
