/** Commands about jobs (QEMU: qapi/job.json and the block jobs of qapi/block-core.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { QmpError } from '../../qmp/errors.js';
import type { JsonObject } from '../../qmp/json-value.js';
import { choice, compact, jsonScalars as s, struct } from '../../qmp/qapi.js';
import type { Job } from '../jobs/job.js';
import { createOptions, toImageOptions } from '../options/create-options.js';
import type { StorageDaemon } from '../storage-daemon.js';
import { addJobEvents, blockJobInfoSchema, jobInfoSchema, onError } from './job-schema.js';

export function addJobCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  addJobEvents(commands);
  addGeneralJobCommands(commands, daemon);
  addBlockJobCommands(commands, daemon);
  commands.addAction('blockdev-create', createArguments, async (command) => {
    await daemon.startCreate(command['job-id'], toImageOptions(command.options));
  });
  commands.addAction('blockdev-mirror', mirrorArguments, async (options) => {
    const { sync } = options;
    if (sync === 'incremental' || sync === 'bitmap') {
      throw new VduseError('NOT_SUPPORTED', `Sync mode '${sync}' not supported`);
    }
    await daemon.startMirror({
      // QEMU names a job by its device, and a node of ours has none.
      jobId: options['job-id'] ?? '',
      device: options.device,
      target: options.target,
      sync,
      ...compact({
        speed: options.speed,
        granularity: options.granularity,
        copyMode: options['copy-mode'],
        onSourceError: options['on-source-error'],
        onTargetError: options['on-target-error'],
        autoFinalize: options['auto-finalize'],
        autoDismiss: options['auto-dismiss'],
      }),
    });
  });
}

const createArguments = struct({ 'job-id': s.str, options: createOptions });

const mirrorArguments = struct({
  'job-id': s.str.optional(),
  device: s.str,
  target: s.str,
  replaces: s.str.optional(),
  sync: choice('top', 'full', 'none', 'incremental', 'bitmap'),
  speed: s.size.optional(),
  granularity: s.uint32.optional(),
  'buf-size': s.size.optional(),
  'on-source-error': onError.optional(),
  'on-target-error': onError.optional(),
  'filter-node-name': s.str.optional(),
  'copy-mode': choice('background', 'write-blocking').optional(),
  'auto-finalize': s.bool.optional(),
  'auto-dismiss': s.bool.optional(),
});

function addGeneralJobCommands(commands: QmpCommandTable, { jobs }: StorageDaemon): void {
  const id = struct({ id: s.str });
  commands.addQuery('query-jobs', struct({}), () => jobs.newestFirst.map(jobInfo), z.array(jobInfoSchema));
  commands.addAction('job-pause', id, (options) => jobs.find(options.id).pause());
  commands.addAction('job-resume', id, (options) => jobs.find(options.id).resume());
  commands.addAction('job-cancel', id, (options) => jobs.find(options.id).cancel({ force: true }));
  commands.addAction('job-complete', id, (options) => jobs.find(options.id).complete());
  commands.addAction('job-finalize', id, (options) => jobs.find(options.id).finalize());
  commands.addAction('job-dismiss', id, (options) => jobs.dismiss(options.id));
}

/** What block jobs had before all jobs had it. `device` is the job's id. */
function addBlockJobCommands(commands: QmpCommandTable, { jobs }: StorageDaemon): void {
  const find = (device: string): Job => {
    const job = jobs.jobs.find((candidate) => isBlockJob(candidate) && candidate.id === device);
    if (job === undefined) {
      throw new QmpError('DeviceNotActive', `Block job '${device}' not found`);
    }
    return job;
  };
  const device = struct({ device: s.str });
  const id = struct({ id: s.str });
  commands.addQuery(
    'query-block-jobs',
    struct({}),
    () => jobs.newestFirst.filter(isBlockJob).map(blockJobInfo),
    z.array(blockJobInfoSchema),
  );
  commands.addAction('block-job-pause', device, (options) => find(options.device).pause());
  commands.addAction('block-job-resume', device, (options) => find(options.device).resume());
  commands.addAction('block-job-complete', device, (options) => find(options.device).complete());
  commands.addAction('block-job-finalize', id, (options) => find(options.id).finalize());
  commands.addAction('block-job-dismiss', id, (options) => {
    find(options.id);
    jobs.dismiss(options.id);
  });
  commands.addAction('block-job-cancel', struct({ device: s.str, force: s.bool.optional() }), (options) =>
    find(options.device).cancel({ force: options.force ?? false }),
  );
  commands.addAction('block-job-set-speed', struct({ device: s.str, speed: s.int }), (options) =>
    find(options.device).setSpeed(options.speed),
  );
}

const isBlockJob = ({ type }: Job): boolean => type !== 'create';

function jobInfo({ id, type, status, current, total, error }: Job): JsonObject {
  return {
    id,
    type,
    status,
    'current-progress': current,
    'total-progress': total,
    ...(error === undefined ? {} : { error }),
  };
}

function blockJobInfo(job: Job): JsonObject {
  const { id, type, status, current, total, speed, error } = job;
  return {
    type,
    device: id,
    len: total,
    offset: current,
    busy: status === 'running' || status === 'ready',
    paused: job.isPaused,
    speed,
    'io-status': job.ioStatus,
    ready: job.isReady,
    status,
    'auto-finalize': job.autoFinalize,
    'auto-dismiss': job.autoDismiss,
    ...(error === undefined ? {} : { error }),
  };
}
