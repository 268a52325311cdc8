/** The daemon's figures in Prometheus's text format, version 0.0.4. The names are documented in docs/metrics.md. */
import type { BlockNode } from '../block/node.js';
import { bucketStartUs, latencyBlock, latencyBuckets } from '../device/latency.js';
import type { DeviceStatistics } from '../device/statistics.js';
import type { BlockExport } from './block-export.js';

export interface MetricsSource {
  readonly exports: readonly BlockExport[];
  readonly nodes: readonly BlockNode[];
}

export const metricsContentType = 'text/plain; version=0.0.4; charset=utf-8';

type Labels = Readonly<Record<string, string>>;

const counters: readonly { name: string; help: string; of: keyof DeviceStatistics }[] = [
  { name: 'vduse_export_reads_total', help: 'Reads that were asked for.', of: 'reads' },
  { name: 'vduse_export_writes_total', help: 'Writes that were asked for.', of: 'writes' },
  { name: 'vduse_export_flushes_total', help: 'Flushes that were asked for.', of: 'flushes' },
  { name: 'vduse_export_unmaps_total', help: 'Discards and write-zeroes that were asked for.', of: 'unmaps' },
  { name: 'vduse_export_read_bytes_total', help: 'Bytes that were read.', of: 'readBytes' },
  { name: 'vduse_export_written_bytes_total', help: 'Bytes that were written.', of: 'writeBytes' },
  { name: 'vduse_export_errors_total', help: 'Requests that failed.', of: 'errors' },
];

const operations = ['read', 'write', 'flush', 'unmap'] as const;
/** Every second doubling of the buckets that the queues count: 4 us, 16 us and so on, up to 67 s. */
const bucketsPerBoundary = 8;
const usPerSecond = 1_000_000;

export function formatMetrics(source: MetricsSource): string {
  const page = new MetricsPage();
  page.describe('vduse_export_info', 'gauge', 'An export; the value is 1.');
  for (const { id, type, node, writable } of source.exports) {
    page.add('vduse_export_info', { export: id, type, node: node.nodeName, writable: `${writable}` }, 1);
  }
  page.describe('vduse_node_size_bytes', 'gauge', "A block node's size.");
  for (const node of source.nodes) {
    page.add('vduse_node_size_bytes', { node: node.nodeName, driver: node.driver }, node.size);
  }
  for (const { name, help, of } of counters) {
    page.describe(name, 'counter', help);
    for (const { id, statistics } of source.exports) {
      if (statistics !== undefined) {
        page.add(name, { export: id }, statistics[of]);
      }
    }
  }
  page.describe('vduse_export_in_flight', 'gauge', 'Requests that are under way.');
  for (const { id, statistics } of source.exports) {
    page.add('vduse_export_in_flight', { export: id }, statistics?.inFlight ?? 0);
  }
  addDurations(page, source.exports);
  addProcess(page);
  return page.text;
}

function addDurations(page: MetricsPage, exports: readonly BlockExport[]): void {
  const name = 'vduse_export_request_duration_seconds';
  page.describe(name, 'histogram', 'How long requests took, since the first time that this was asked for.');
  for (const { id, counters: counted } of exports) {
    const blocks = counted?.totalLatencies();
    if (blocks === undefined) {
      continue;
    }
    operations.forEach((operation, op) => {
      const labels = { export: id, operation };
      const at = op * latencyBlock;
      let count = 0;
      for (let bucket = 0; bucket < latencyBuckets; bucket++) {
        if (bucket > 0 && bucket % bucketsPerBoundary === 0) {
          const le = `${bucketStartUs(bucket) / usPerSecond}`;
          page.add(`${name}_bucket`, { ...labels, le }, count);
        }
        count += blocks[at + 1 + bucket];
      }
      page.add(`${name}_bucket`, { ...labels, le: '+Inf' }, count);
      page.add(`${name}_sum`, labels, blocks[at] / usPerSecond);
      page.add(`${name}_count`, labels, count);
    });
  }
}

function addProcess(page: MetricsPage): void {
  const { user, system } = process.cpuUsage();
  page.describe('process_cpu_seconds_total', 'counter', 'Processor time that the process has used.');
  page.add('process_cpu_seconds_total', {}, (user + system) / usPerSecond);
  page.describe('process_resident_memory_bytes', 'gauge', 'Memory that the process has in use.');
  page.add('process_resident_memory_bytes', {}, process.memoryUsage.rss());
  page.describe('process_start_time_seconds', 'gauge', 'When the process started, in seconds since 1970.');
  page.add('process_start_time_seconds', {}, performance.timeOrigin / 1000);
}

class MetricsPage {
  #lines: string[] = [];

  describe(name: string, type: 'counter' | 'gauge' | 'histogram', help: string): void {
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
  }

  add(name: string, labels: Labels, value: number): void {
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escapeLabel(text)}"`);
    this.#lines.push(`${name}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}`);
  }

  get text(): string {
    return `${this.#lines.join('\n')}\n`;
  }
}

function escapeLabel(text: string): string {
  return text.replace(/[\\"\n]/g, (char) => (char === '\n' ? '\\n' : `\\${char}`));
}
