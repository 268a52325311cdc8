/** Commands about exports (QEMU: qapi/block-export.json). */
import { z } from 'zod';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { choice, jsonScalars as s, struct } from '../../qmp/qapi.js';
import { exportOptions, toExportRequest } from '../options/export-options.js';
import type { StorageDaemon } from '../storage-daemon.js';

const exportInfo = struct({
  id: s.str,
  type: choice('nbd', 'vhost-user-blk', 'vduse-blk'),
  'node-name': s.str,
  'shutting-down': s.bool,
});

export function addExportCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('block-export-add', exportOptions.json, async (options) => {
    await daemon.addExport(toExportRequest(options));
  });
  commands.addAction(
    'block-export-del',
    struct({ id: s.str, mode: choice('safe', 'hard').optional() }),
    (options) => daemon.deleteExport(options.id, options.mode),
  );
  commands.addQuery(
    'query-block-exports',
    struct({}),
    () =>
      daemon.exports.map((blockExport) => ({
        id: blockExport.id,
        type: blockExport.type,
        'node-name': blockExport.node.nodeName,
        'shutting-down': blockExport.shuttingDown,
      })),
    z.array(exportInfo),
  );
  commands.addEvent(
    'BLOCK_IO_ERROR',
    struct({
      device: s.str,
      'node-name': s.str.optional(),
      operation: choice('read', 'write'),
      action: choice('ignore', 'report', 'stop'),
      nospace: s.bool.optional(),
      reason: s.str,
    }),
  );
  commands.addEvent('BLOCK_EXPORT_DELETED', struct({ id: s.str }));
}
