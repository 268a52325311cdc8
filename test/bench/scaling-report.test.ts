import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ScalingPoint } from '../../bench/support/scaling.js';
import type { IdleCost } from '../../bench/support/scaling-idle.js';
import { idleTable, partPlot, partTable } from '../../bench/support/scaling-report.js';

const shape = (server: string, devices: number, queues: number) => ({ server, devices, queues, depth: 32 });
const point = (server: string, devices: number, queues: number): ScalingPoint => ({
  ...shape(server, devices, queues),
  found: { iops: 1000 * devices * queues, cpuUsPerIo: 2, ownMib: 50 + devices, threads: 4 },
});
const failed: ScalingPoint = { ...shape('peer', 1, 2), found: { failure: 'no end within 12 s, 5 times' } };

const queues = [point('vduse', 1, 1), point('peer', 1, 1), point('vduse', 1, 2), failed];
const devices = [point('vduse', 1, 1), point('vduse', 4, 1)];
const idle: IdleCost[] = [
  {
    server: 'vduse',
    devices: 16,
    found: {
      furtherDeviceMib: 0.5,
      furtherUnusedDeviceMib: 0.25,
      furtherQueueMib: 0.125,
      furtherThreadMib: 8,
      unusedCpuShare: 0.001,
      connectedCpuShare: 0.0025,
    },
  },
  { server: 'peer', devices: 16, found: { failure: 'turned away, 5 times' } },
];

test('scaling: tables of queues, devices and what is idle, with a reason where there are no figures', () => {
  const tables = [partTable('queues', queues), partTable('devices', devices), idleTable(idle)];
  assert.deepEqual(tables[0].rows[3], ['2', 'vduse', '2000', '2.00', '51.0', '4']);
  assert.deepEqual(tables[0].rows[4], ['2', 'peer', '-', '-', '-', 'no end within 12 s, 5 times']);
  assert.deepEqual(tables[1].rows[2], ['4', 'vduse', '4000', '2.00', '54.0', '4']);
  assert.deepEqual(tables[2].rows[1], ['vduse', '0.25', '0.50', '0.13', '8.00', '0.10 %', '0.25 %']);
  assert.equal(tables[2].rows[2].at(-1), 'turned away, 5 times');
  for (const { rows } of tables) {
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
  const svg = partPlot('queues', queues, environment);
  assert.doesNotMatch(svg, /NaN|undefined/);
  // Two points of ours and one of the peer's in each of three panels.
  assert.equal([...svg.matchAll(/<circle /g)].length, 3 * 3);
});
