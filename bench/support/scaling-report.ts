/** Scaling as tables and plots. */
import type { Table } from './compare-report.js';
import { formatMicroseconds } from './compare-report.js';
import type { Environment } from './environment.js';
import { formatCount } from './figures.js';
import type { ScalingFigures, ScalingPart, ScalingPoint } from './scaling.js';
import type { IdleCost } from './scaling-idle.js';
import { type LinePanel, lineChart } from './svg.js';

const partTitles: Readonly<Record<ScalingPart, string>> = {
  queues: 'Queues of one device: page-cached file, 4k random read',
  devices: 'Devices in one daemon: page-cached files, 4k random read',
};

/** A row that says why it has no figures. */
function failedRow(names: readonly string[], failure: string, columns: number): string[] {
  const dashes = Array<string>(columns - names.length - 1).fill('-');
  return [...names, ...dashes, failure];
}

export function partTable(part: ScalingPart, points: readonly ScalingPoint[]): Table {
  const header = [part, 'server', 'IOPS', 'CPU us/IO', 'memory MiB', 'threads'];
  const rows = points.map(({ server, found, ...shape }) =>
    'failure' in found
      ? failedRow([String(shape[part]), server], found.failure, header.length)
      : [
          String(shape[part]),
          server,
          formatCount(found.iops),
          formatMicroseconds(found.cpuUsPerIo),
          found.ownMib.toFixed(1),
          String(found.threads),
        ],
  );
  return { title: `${partTitles[part]}, depth ${points[0]?.depth} each`, rows: [header, ...rows] };
}

export function idleTable(costs: readonly IdleCost[]): Table {
  const percent = (share: number): string => `${(share * 100).toFixed(2)} %`;
  const count = costs[0]?.devices ?? 0;
  const header = [
    '',
    'further device MiB',
    'further device, connected, MiB',
    'further queue, connected, MiB',
    'further thread and queue, connected, MiB',
    `${count} devices, of a core`,
    `${count} devices, connected, of a core`,
  ];
  const rows = costs.map(({ server, found }) =>
    'failure' in found
      ? failedRow([server], found.failure, header.length)
      : [
          server,
          found.furtherUnusedDeviceMib.toFixed(2),
          found.furtherDeviceMib.toFixed(2),
          found.furtherQueueMib.toFixed(2),
          found.furtherThreadMib?.toFixed(2) ?? '-',
          percent(found.unusedCpuShare),
          percent(found.connectedCpuShare),
        ],
  );
  return { title: 'Idle', rows: [header, ...rows] };
}

export function partPlot(part: ScalingPart, points: readonly ScalingPoint[], where: Environment): string {
  const series = [...new Set(points.map(({ server }) => server))];
  const xs = [...new Set(points.map((point) => point[part]))];
  const panel = (title: string, value: (figures: ScalingFigures) => number): LinePanel => ({
    title: `${title} by ${part}`,
    xLabel: part,
    xs,
    ys: series.map((server) =>
      xs.map((x) => {
        const found = points.find((point) => point.server === server && point[part] === x)?.found;
        return found === undefined || 'failure' in found ? undefined : value(found);
      }),
    ),
  });
  return lineChart({
    title: `vhost-user-blk: one daemon with more ${part}`,
    subtitle: `page cache, 4k random read, depth ${points[0]?.depth} each; ${where.processors} processors, Linux ${where.kernel}, ${where.date}`,
    series,
    columns: 3,
    panels: [
      panel('IOPS', ({ iops }) => iops),
      panel('CPU us per I/O', ({ cpuUsPerIo }) => cpuUsPerIo),
      panel('memory MiB', ({ ownMib }) => ownMib),
    ],
  });
}
