import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Scaling, ScalingPoint } from '../../bench/support/scaling.js';
import { scalingPlot, scalingTables } from '../../bench/support/scaling-report.js';

const point = (server: string, devices: number, queues: number): ScalingPoint => ({
  server,
  devices,
  queues,
  depth: 32,
  iops: 1000 * devices * queues,
  cpuUsPerIo: 2,
  ownMib: 50 + devices,
  threads: 4,
});

const scaling: Scaling = {
  queues: [point('vduse', 1, 1), point('peer', 1, 1), point('vduse', 1, 2)],
  devices: [point('vduse', 1, 1), point('vduse', 4, 1)],
  idle: [
    {
      server: 'vduse',
      furtherDeviceMib: 0.5,
      furtherUnusedDeviceMib: 0.25,
      furtherQueueMib: 0.125,
      furtherThreadMib: 8,
      devices: 16,
      unusedCpuShare: 0.001,
      connectedCpuShare: 0.0025,
    },
    {
      server: 'peer',
      furtherDeviceMib: 0,
      furtherUnusedDeviceMib: 0,
      furtherQueueMib: 0,
      devices: 16,
      unusedCpuShare: 0,
      connectedCpuShare: 0,
    },
  ],
};

test('scaling: tables of queues, devices and what is idle', () => {
  const [queues, devices, idle] = scalingTables(scaling);
  assert.deepEqual(queues.rows[3], ['2', 'vduse', '2000', '2.00', '51.0', '4']);
  assert.deepEqual(devices.rows[2], ['4', 'vduse', '4000', '2.00', '54.0', '4']);
  assert.deepEqual(idle.rows[1], ['vduse', '0.25', '0.50', '0.13', '8.00', '0.10 %', '0.25 %']);
  assert.equal(idle.rows[2][4], '-');
  for (const { rows } of [queues, devices, idle]) {
    for (const row of rows) assert.equal(row.length, rows[0].length);
  }
});

test('scaling: the plot leaves out what was not measured', () => {
  const environment = {
    date: '2026-01-01',
    processor: 'x',
    processors: 2,
    memoryGib: 8,
    kernel: '6.1',
    node: 'v20.0.0',
    programs: {},
  };
  const svg = scalingPlot(scaling, environment);
  assert.doesNotMatch(svg, /NaN|undefined/);
  // Queues: two points of ours and one of the peer's in each of three panels; devices: two of ours.
  assert.equal([...svg.matchAll(/<circle /g)].length, 3 * 3 + 3 * 2);
});
