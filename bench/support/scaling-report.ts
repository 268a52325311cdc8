/** Scaling as tables, as JSON, as a plot. */
import type { Table } from './compare-report.js';
import { formatMicroseconds } from './compare-report.js';
import type { Environment } from './environment.js';
import { formatCount } from './figures.js';
import type { Scaling, ScalingPoint } from './scaling.js';
import { type LinePanel, lineChart } from './svg.js';

function pointTable(
  points: readonly ScalingPoint[],
  { title, by }: { title: string; by: 'queues' | 'devices' },
): Table {
  const rows = points.map((point) => [
    String(point[by]),
    point.server,
    formatCount(point.iops),
    formatMicroseconds(point.cpuUsPerIo),
    point.ownMib.toFixed(1),
    String(point.threads),
  ]);
  return { title, rows: [[by, 'server', 'IOPS', 'CPU us/IO', 'memory MiB', 'threads'], ...rows] };
}

export function scalingTables({ queues, devices, idle }: Scaling): Table[] {
  const percent = (share: number): string => `${(share * 100).toFixed(2)} %`;
  const rows = idle.map((cost) => [
    cost.server,
    cost.furtherUnusedDeviceMib.toFixed(2),
    cost.furtherDeviceMib.toFixed(2),
    cost.furtherQueueMib.toFixed(2),
    cost.furtherThreadMib?.toFixed(2) ?? '-',
    percent(cost.unusedCpuShare),
    percent(cost.connectedCpuShare),
  ]);
  const count = idle[0]?.devices ?? 0;
  const header = [
    '',
    'further device MiB',
    'further device, connected, MiB',
    'further queue, connected, MiB',
    'further thread and queue, connected, MiB',
    `${count} devices, of a core`,
    `${count} devices, connected, of a core`,
  ];
  return [
    pointTable(queues, {
      title: `Queues of one device: page-cached file, 4k random read, depth ${queues[0]?.depth} each`,
      by: 'queues',
    }),
    pointTable(devices, {
      title: `Devices in one daemon: page-cached files, 4k random read, depth ${devices[0]?.depth} each`,
      by: 'devices',
    }),
    { title: 'Idle', rows: [header, ...rows] },
  ];
}

export function scalingJson(scaling: Scaling, environment: Environment): object {
  return { environment, ...scaling };
}

function panels(points: readonly ScalingPoint[], by: 'queues' | 'devices'): LinePanel[] {
  const servers = [...new Set(points.map(({ server }) => server))];
  const xs = [...new Set(points.map((point) => point[by]))];
  const panel = (title: string, value: (point: ScalingPoint) => number): LinePanel => ({
    title,
    xLabel: by,
    xs,
    ys: servers.map((server) =>
      xs.map((x) => {
        const point = points.find((candidate) => candidate.server === server && candidate[by] === x);
        return point === undefined ? undefined : value(point);
      }),
    ),
  });
  return [
    panel(`IOPS by ${by}`, ({ iops }) => iops),
    panel(`CPU us per I/O by ${by}`, ({ cpuUsPerIo }) => cpuUsPerIo),
    panel(`memory MiB by ${by}`, ({ ownMib }) => ownMib),
  ];
}

export function scalingPlot({ queues, devices }: Scaling, environment: Environment): string {
  return lineChart({
    title: 'vhost-user-blk: one daemon with more queues, and with more devices',
    subtitle: `page-cached files, 4k random read; ${environment.processors} processors, Linux ${environment.kernel}, ${environment.date}`,
    series: [...new Set(queues.map(({ server }) => server))],
    columns: 3,
    panels: [...panels(queues, 'queues'), ...panels(devices, 'devices')],
  });
}
