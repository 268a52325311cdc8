import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { busySeconds, parseBusySeconds } from '../../bench/support/processes.js';
import { describeDisturbance, remoteTables, type StoreResult } from '../../bench/support/remote-report.js';
import type { RemoteSample } from '../../bench/support/remote-sample.js';

const sample = (iops: number, serverCpuUsPerIo: number, foreignShare = 0): RemoteSample => ({
  iops,
  p50Us: 50,
  p99Us: 100,
  serverCpuUsPerIo,
  clientCpuUsPerIo: 5,
  storeCpuUsPerIo: 20,
  foreignShare,
});

const result: StoreResult = {
  name: 'nbd',
  title: 'NBD',
  cells: [
    {
      title: '4k random read, depth 1',
      workload: { rw: 'randread', depth: 1 },
      samples: new Map([
        ['vduse', [sample(30_000, 10), sample(20_000, 20), sample(33_000, 15)]],
        ['qemu-storage-daemon', [sample(20_000, 20), sample(20_000, 20, 0.3), sample(30_000, 20)]],
        ["fio's nbd engine", [sample(40_000, 0), sample(40_000, 0), sample(33_000, 0)]],
      ]),
    },
  ],
};

describe('the report of the remote benchmark', () => {
  test('medians of each, and ratios of samples that were taken side by side, undisturbed', () => {
    const [figures, ratios] = remoteTables(result);
    assert.deepEqual(figures.rows[1], [
      '4k random read, depth 1',
      'vduse',
      '30.0k',
      '50.0',
      '100',
      '15.0',
      '5.00',
      '20.0',
      '1.30 (1.10 to 1.50)',
    ]);
    assert.equal(figures.rows[3][5], '-', 'nobody is between fio and the store');
    assert.deepEqual(ratios.rows[1], [
      '4k random read, depth 1',
      '1.30 (1.10 to 1.50)',
      '0.75 (0.50 to 1.00)',
      '0.63 (0.50 to 0.75)',
    ]);
  });

  test('how quiet the machine was', () => {
    assert.match(describeDisturbance(result), /^In 1 of 9 samples /);
  });

  test('the time that the processors did not idle: no iowait, but what was stolen', () => {
    const stat = 'cpu  100 10 50 9999 999 20 10 10 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n';
    assert.equal(parseBusySeconds(stat, 100), 2);
    assert.ok(busySeconds() > 0);
  });
});
