/** Backups and transactions of them (QEMU: qapi/block-core.json, qapi/transaction.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { choice, compact, jsonScalars as s, struct, variants } from '../../qmp/qapi.js';
import type { BackupRequest, StorageDaemon } from '../storage-daemon.js';
import { onError } from './job-schema.js';

const perf = struct({
  'use-copy-range': s.bool.optional(),
  'max-workers': s.int.optional(),
  'max-chunk': s.int.optional(),
});

const backupArguments = struct({
  'job-id': s.str.optional(),
  device: s.str,
  target: s.str,
  sync: choice('top', 'full', 'none', 'incremental', 'bitmap'),
  speed: s.int.optional(),
  bitmap: s.str.optional(),
  'bitmap-mode': choice('on-success', 'never', 'always').optional(),
  compress: s.bool.optional(),
  'on-source-error': onError.optional(),
  'on-target-error': onError.optional(),
  'auto-finalize': s.bool.optional(),
  'auto-dismiss': s.bool.optional(),
  'filter-node-name': s.str.optional(),
  'x-perf': perf.optional(),
});

const transactionArguments = struct({
  actions: z.array(
    variants('type', [
      struct({ type: z.literal('abort'), data: struct({}) }),
      struct({ type: z.literal('blockdev-backup'), data: backupArguments }),
    ]),
  ),
  properties: struct({ 'completion-mode': choice('individual', 'grouped').optional() }).optional(),
});

export function addBackupCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('blockdev-backup', backupArguments, async (options) => {
    await daemon.startBackups([toBackupRequest(options)]);
  });
  commands.addAction('transaction', transactionArguments, async ({ actions, properties }) => {
    const abortAt = actions.findIndex(({ type }) => type === 'abort');
    // What comes after an abort is not looked at.
    const before = abortAt < 0 ? actions : actions.slice(0, abortAt);
    const backups = before.flatMap((action) =>
      action.type === 'blockdev-backup' ? [toBackupRequest(action.data)] : [],
    );
    await daemon.startBackups(backups, {
      grouped: properties?.['completion-mode'] === 'grouped',
      check: () => {
        if (abortAt >= 0) {
          throw new VduseError('ABORTED', 'Transaction aborted using Abort action');
        }
      },
    });
  });
}

function toBackupRequest(options: z.output<typeof backupArguments>): BackupRequest {
  const perfOptions = options['x-perf'];
  return {
    // QEMU names a job by its device, and a node of ours has none.
    jobId: options['job-id'] ?? '',
    device: options.device,
    target: options.target,
    sync: options.sync,
    ...compact({
      speed: options.speed,
      bitmap: options.bitmap,
      bitmapMode: options['bitmap-mode'],
      compress: options.compress,
      onSourceError: options['on-source-error'],
      onTargetError: options['on-target-error'],
      autoFinalize: options['auto-finalize'],
      autoDismiss: options['auto-dismiss'],
      filterNodeName: options['filter-node-name'],
      workers: perfOptions?.['max-workers'],
      chunkMax: perfOptions?.['max-chunk'],
    }),
  };
}
