/** What exports have done, as QMP tells it (QEMU: qapi/block-core.json, BlockStats). */
import { z } from 'zod';
import type { BlockNode } from '../../block/node.js';
import { LatencyOp, latencyBlock } from '../../device/latency.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { QmpError } from '../../qmp/errors.js';
import type { JsonObject } from '../../qmp/json-value.js';
import { compact, jsonScalars as s, struct } from '../../qmp/qapi.js';
import type { BlockExport } from '../block-export.js';
import { LatencyHistograms } from '../latency-histograms.js';
import type { StorageDaemon } from '../storage-daemon.js';

/** Members of BlockDeviceStats that count what there is nothing of here. */
const uncounted = [
  'unmap_bytes',
  'failed_rd_operations',
  'failed_wr_operations',
  'failed_flush_operations',
  'failed_unmap_operations',
  'wr_highest_offset',
  'rd_merged',
  'wr_merged',
  'unmap_merged',
  'invalid_rd_operations',
  'invalid_wr_operations',
  'invalid_flush_operations',
  'invalid_unmap_operations',
] as const;

const counted = [
  'rd_bytes',
  'wr_bytes',
  'rd_operations',
  'wr_operations',
  'flush_operations',
  'unmap_operations',
  'rd_total_time_ns',
  'wr_total_time_ns',
  'flush_total_time_ns',
  'unmap_total_time_ns',
] as const;

type Counted = Record<(typeof counted)[number], number>;

const integers = Object.fromEntries([...counted, ...uncounted].map((name) => [name, s.int]));
const histogramInfo = struct({ boundaries: z.array(s.int), bins: z.array(s.int) });

const deviceStats = struct({
  ...integers,
  account_invalid: s.bool,
  account_failed: s.bool,
  timed_stats: z.array(z.unknown()),
  rd_latency_histogram: histogramInfo.optional(),
  wr_latency_histogram: histogramInfo.optional(),
  flush_latency_histogram: histogramInfo.optional(),
  // Ours, of exports only.
  'x-in-flight': s.int.optional(),
  'x-errors': s.int.optional(),
});

const blockStats = struct({
  device: s.str.optional(),
  qdev: s.str.optional(),
  'node-name': s.str.optional(),
  stats: deviceStats,
});

const boundaries = z.array(s.int).optional();

const histogramArguments = struct({
  id: s.str,
  boundaries,
  'boundaries-read': boundaries,
  'boundaries-write': boundaries,
  'boundaries-flush': boundaries,
});

export function addStatisticsCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  const histograms = new LatencyHistograms();
  // There are no guest devices, which is what this tells.
  commands.addQuery('query-block', struct({}), () => [], z.array(z.unknown()));
  commands.addQuery(
    'query-blockstats',
    struct({ 'query-nodes': s.bool.optional() }),
    (options) =>
      options['query-nodes'] === true
        ? [...daemon.nodes].reverse().map((node) => nodeStats(daemon, node))
        : daemon.exports.map((blockExport) => exportStats(blockExport, histograms)),
    z.array(blockStats),
  );
  commands.addAction('block-latency-histogram-set', histogramArguments, (options) => {
    const blockExport = daemon.findExport(options.id);
    if (blockExport === undefined) {
      throw new QmpError('DeviceNotFound', `Device '${options.id}' not found`);
    }
    const all = options.boundaries;
    histograms.set(
      blockExport,
      compact({
        rd: options['boundaries-read'] ?? all,
        wr: options['boundaries-write'] ?? all,
        flush: options['boundaries-flush'] ?? all,
      }),
    );
  });
}

function nodeStats(daemon: StorageDaemon, node: BlockNode): JsonObject {
  const exports = daemon.exports.filter((blockExport) => blockExport.node.nodeName === node.nodeName);
  return { 'node-name': node.nodeName, stats: statsOf(exports) };
}

function exportStats(blockExport: BlockExport, histograms: LatencyHistograms): JsonObject {
  const { statistics } = blockExport;
  return {
    device: '',
    qdev: blockExport.id,
    'node-name': blockExport.node.nodeName,
    stats: {
      ...statsOf([blockExport]),
      ...histograms.describe(blockExport),
      'x-in-flight': statistics?.inFlight ?? 0,
      'x-errors': statistics?.errors ?? 0,
    },
  };
}

/** The sums over the exports. */
function statsOf(exports: readonly BlockExport[]): JsonObject {
  const sums: JsonObject = Object.fromEntries(uncounted.map((name) => [name, 0]));
  const each = exports.flatMap((blockExport) => toCounted(blockExport) ?? []);
  for (const name of counted) {
    sums[name] = each.reduce((sum, stats) => sum + stats[name], 0);
  }
  return { ...sums, account_invalid: false, account_failed: false, timed_stats: [] };
}

function toCounted({ statistics, counters }: BlockExport): Counted | undefined {
  if (statistics === undefined) {
    return undefined;
  }
  const latencies = counters?.totalLatencies();
  const totalNs = (op: number): number => (latencies?.[op * latencyBlock] ?? 0) * 1000;
  return {
    rd_bytes: statistics.readBytes,
    wr_bytes: statistics.writeBytes,
    rd_operations: statistics.reads,
    wr_operations: statistics.writes,
    flush_operations: statistics.flushes,
    unmap_operations: statistics.unmaps,
    rd_total_time_ns: totalNs(LatencyOp.READ),
    wr_total_time_ns: totalNs(LatencyOp.WRITE),
    flush_total_time_ns: totalNs(LatencyOp.FLUSH),
    unmap_total_time_ns: totalNs(LatencyOp.UNMAP),
  };
}
