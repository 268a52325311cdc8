/** What queries and events tell of jobs (QEMU: qapi/job.json, and BlockJobInfo of qapi/block-core.json). */
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { choice, jsonScalars as s, struct } from '../../qmp/qapi.js';

const jobType = choice(
  'commit',
  'stream',
  'mirror',
  'backup',
  'create',
  'amend',
  'snapshot-load',
  'snapshot-save',
  'snapshot-delete',
);

const jobStatus = choice(
  'undefined',
  'created',
  'running',
  'paused',
  'ready',
  'standby',
  'waiting',
  'pending',
  'aborting',
  'concluded',
  'null',
);

export const jobInfoSchema = struct({
  id: s.str,
  type: jobType,
  status: jobStatus,
  'current-progress': s.int,
  'total-progress': s.int,
  error: s.str.optional(),
});

export const blockJobInfoSchema = struct({
  type: s.str,
  device: s.str,
  len: s.int,
  offset: s.int,
  busy: s.bool,
  paused: s.bool,
  speed: s.int,
  'io-status': choice('ok', 'failed', 'nospace'),
  ready: s.bool,
  status: jobStatus,
  'auto-finalize': s.bool,
  'auto-dismiss': s.bool,
  error: s.str.optional(),
});

/** What a job is told to do about errors of its nodes. */
export const onError = choice('report', 'ignore', 'enospc', 'stop', 'auto');

export function addJobEvents(commands: QmpCommandTable): void {
  const blockJob = { type: jobType, device: s.str, len: s.int, offset: s.int, speed: s.int };
  commands.addEvent('JOB_STATUS_CHANGE', struct({ id: s.str, status: jobStatus }));
  commands.addEvent('BLOCK_JOB_COMPLETED', struct({ ...blockJob, error: s.str.optional() }));
  commands.addEvent('BLOCK_JOB_CANCELLED', struct(blockJob));
  commands.addEvent('BLOCK_JOB_READY', struct(blockJob));
  const error = { operation: choice('read', 'write'), action: choice('ignore', 'report', 'stop') };
  commands.addEvent('BLOCK_JOB_ERROR', struct({ device: s.str, ...error }));
  commands.addEvent('BLOCK_JOB_PENDING', struct({ type: jobType, id: s.str }));
}
