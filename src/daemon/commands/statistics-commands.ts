/** What exports have done, as QMP tells it (QEMU: qapi/block-core.json, BlockStats). */
import { z } from 'zod';
import type { DeviceStatistics } from '../../device/statistics.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import type { JsonObject } from '../../qmp/json-value.js';
import { jsonScalars as s, struct } from '../../qmp/qapi.js';
import type { BlockExport } from '../block-export.js';
import type { StorageDaemon } from '../storage-daemon.js';

/** Members of BlockDeviceStats that count what there is nothing of here. */
const uncounted = [
  'unmap_bytes',
  'rd_total_time_ns',
  'wr_total_time_ns',
  'flush_total_time_ns',
  'unmap_total_time_ns',
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
] as const;

type Counted = Record<(typeof counted)[number], number>;

const integers = Object.fromEntries([...counted, ...uncounted].map((name) => [name, s.int]));

const deviceStats = struct({
  ...integers,
  account_invalid: s.bool,
  account_failed: s.bool,
  timed_stats: z.array(z.unknown()),
});

const blockStats = struct({
  device: s.str.optional(),
  qdev: s.str.optional(),
  'node-name': s.str.optional(),
  stats: deviceStats,
});

export function addStatisticsCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  // There are no guest devices, which is what this tells.
  commands.addQuery('query-block', struct({}), () => [], z.array(z.unknown()));
  commands.addQuery(
    'query-blockstats',
    struct({ 'query-nodes': s.bool.optional() }),
    (options) =>
      options['query-nodes'] === true
        ? [...daemon.nodes].reverse().map(({ node }) => ({
            'node-name': node.nodeName,
            stats: statsOf(daemon.exports.filter((blockExport) => blockExport.node === node)),
          }))
        : daemon.exports
            .filter(({ statistics }) => statistics !== undefined)
            .map((blockExport) => ({
              device: '',
              qdev: blockExport.id,
              'node-name': blockExport.node.nodeName,
              stats: statsOf([blockExport]),
            })),
    z.array(blockStats),
  );
}

/** The sums over the exports. */
function statsOf(exports: readonly BlockExport[]): JsonObject {
  const sums: JsonObject = Object.fromEntries(uncounted.map((name) => [name, 0]));
  const each = exports.flatMap(({ statistics }) => (statistics === undefined ? [] : [toCounted(statistics)]));
  for (const name of counted) {
    sums[name] = each.reduce((sum, stats) => sum + stats[name], 0);
  }
  return { ...sums, account_invalid: false, account_failed: false, timed_stats: [] };
}

function toCounted(statistics: DeviceStatistics): Counted {
  return {
    rd_bytes: statistics.readBytes,
    wr_bytes: statistics.writeBytes,
    rd_operations: statistics.reads,
    wr_operations: statistics.writes,
    flush_operations: statistics.flushes,
    unmap_operations: statistics.unmaps,
  };
}
