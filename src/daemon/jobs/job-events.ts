/** What becomes of jobs, as the events that QMP clients hear: QEMU's names and members. */
import type { Logger } from '../../base/log.js';
import type { JsonObject } from '../../qmp/json-value.js';
import type { Job, JobListener } from './job.js';

function blockJobEvent({ id, type, total, current, speed }: Job): JsonObject {
  return { type, device: id, len: total, offset: current, speed };
}

/** Sends the events, and logs how block jobs end. */
export function jobEvents(send: (name: string, data: JsonObject) => void, logger: Logger): JobListener {
  return {
    onStatus: ({ id, status }) => send('JOB_STATUS_CHANGE', { id, status }),
    onReady: (job) => send('BLOCK_JOB_READY', blockJobEvent(job)),
    onError: ({ id }, { operation, action }) => send('BLOCK_JOB_ERROR', { device: id, operation, action }),
    onPending: ({ id, type }) => send('BLOCK_JOB_PENDING', { type, id }),
    onEnd: (job) => {
      const { error } = job;
      if (job.type === 'create') {
        // No block job: QEMU tells of its states alone.
        return;
      }
      const name = job.isCancelled || job.isStopped ? 'BLOCK_JOB_CANCELLED' : 'BLOCK_JOB_COMPLETED';
      const failure = error === undefined || job.isCancelled ? {} : { error };
      send(name, { ...blockJobEvent(job), ...failure });
      logger.info(`job ${job.id}: ${error ?? 'done'}`);
    },
  };
}
