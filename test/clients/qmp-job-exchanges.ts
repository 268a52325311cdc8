/** Commands about jobs that qemu-storage-daemon and ours are given, one after the other. */
import type { Exchange } from './qmp-exchanges.js';

export interface JobExchange extends Exchange {
  /** Before the next exchange the job is in this state, or gone. */
  readonly awaits?: { readonly job: string; readonly status: string };
}

const exchange = (name: string, command: string, args?: object): JobExchange =>
  args === undefined ? { name, command } : { name, command, arguments: args };

const node = (name: string, size = 1 << 20) =>
  exchange(`add the node ${name}`, 'blockdev-add', {
    driver: 'null-co',
    'node-name': name,
    size,
    'read-zeroes': true,
  });

const nodes = { 'job-id': 'j', device: 'js', target: 'jt', sync: 'full' };
const backup = (name: string, more: object = {}) => exchange(name, 'blockdev-backup', { ...nodes, ...more });
const mirror = (name: string, more: object = {}) => exchange(name, 'blockdev-mirror', { ...nodes, ...more });
const gone = (job: string, step: JobExchange): JobExchange => ({ ...step, awaits: { job, status: 'gone' } });
const reaches = (job: string, status: string, step: JobExchange): JobExchange => ({
  ...step,
  awaits: { job, status },
});

const action = (id: string, device: string, target: string, more: object = {}) => ({
  type: 'blockdev-backup',
  data: { 'job-id': id, device, target, sync: 'full', ...more },
});
const transaction = (name: string, actions: object[], mode?: string) =>
  exchange(name, 'transaction', {
    actions,
    ...(mode === undefined ? {} : { properties: { 'completion-mode': mode } }),
  });
const abort = { type: 'abort', data: {} };
const manual = { 'auto-finalize': false, 'auto-dismiss': false };
const pairs = [action('g', 'js', 'jt', manual), action('h', 'ju', 'jv', manual)];

export const jobs: readonly JobExchange[] = [
  node('js'),
  node('jt'),
  node('ju'),
  node('jv'),
  node('jz', 65_536),
  exchange('a backup without an id', 'blockdev-backup', { device: 'js', target: 'jt', sync: 'full' }),
  backup('a backup under an id that is none', { 'job-id': '9' }),
  backup('a backup of no node', { device: 'zz' }),
  backup('a backup to no node', { target: 'zz' }),
  backup('a backup to itself', { target: 'js' }),
  backup('a backup to a smaller node', { target: 'jz' }),
  backup('an incremental backup', { sync: 'incremental' }),
  backup('a backup by no bitmap', { sync: 'bitmap' }),
  backup('a backup by a bitmap that there is not', { sync: 'incremental', bitmap: 'b' }),
  backup('a full backup with a bitmap that there is not', { bitmap: 'b' }),
  backup('a bitmap mode without a bitmap', { 'bitmap-mode': 'never' }),
  backup('a backup that is compressed', { compress: true }),
  backup('a backup of a way that there is not', { sync: 'some' }),
  exchange('a backup without a way', 'blockdev-backup', { 'job-id': 'j', device: 'js', target: 'jt' }),
  backup('a backup with no workers', { 'x-perf': { 'max-workers': 0 } }),
  backup('a backup in chunks too small', { 'x-perf': { 'max-chunk': 1 } }),
  backup('a backup in chunks of less than nothing', { 'x-perf': { 'max-chunk': -1 } }),
  backup('a backup under a name that is used', { 'filter-node-name': 'ju' }),
  backup('a backup under a name that is none', { 'filter-node-name': '9' }),
  backup('a backup with an unknown reaction to errors', { 'on-source-error': 'cry' }),
  reaches(
    'j',
    'running',
    backup('a backup of what is overwritten', { sync: 'none', 'on-target-error': 'stop' }),
  ),
  backup('a backup under an id that is used', { target: 'ju' }),
  backup('a backup of a target', { 'job-id': 'k', device: 'jt', target: 'ju' }),
  exchange('complete a backup', 'job-complete', { id: 'j' }),
  exchange('complete a backup the older way', 'block-job-complete', { device: 'j' }),
  exchange('finalize a job that runs', 'job-finalize', { id: 'j' }),
  exchange('dismiss a job that runs', 'job-dismiss', { id: 'j' }),
  exchange('resume a job that runs', 'job-resume', { id: 'j' }),
  exchange('slow a job down', 'block-job-set-speed', { device: 'j', speed: 1000 }),
  exchange('slow a job down to less than nothing', 'block-job-set-speed', { device: 'j', speed: -1 }),
  exchange('pause a job', 'job-pause', { id: 'j' }),
  exchange('pause a job again', 'block-job-pause', { device: 'j' }),
  exchange('a paused block job', 'query-block-jobs'),
  exchange('a paused job', 'query-jobs'),
  exchange('resume a job', 'block-job-resume', { device: 'j' }),
  gone('j', exchange('cancel a backup', 'block-job-cancel', { device: 'j' })),
  reaches('j', 'pending', backup('a backup that waits for the word', manual)),
  exchange('a pending block job', 'query-block-jobs'),
  exchange('pause a pending job', 'job-pause', { id: 'j' }),
  reaches('j', 'concluded', exchange('finalize a job', 'job-finalize', { id: 'j' })),
  exchange('a concluded job', 'query-jobs'),
  exchange('cancel a concluded job', 'job-cancel', { id: 'j' }),
  gone('j', exchange('dismiss a job', 'block-job-dismiss', { id: 'j' })),
  gone('j', backup('a backup that ends by itself')),
  transaction('a transaction of nothing', []),
  transaction('a transaction that aborts', [abort]),
  transaction('a transaction of an unknown action', [{ type: 'none', data: {} }]),
  transaction('a transaction of an action without its data', [{ type: 'abort' }]),
  transaction('a transaction of half an action', [{ type: 'blockdev-backup', data: { 'job-id': 'g' } }]),
  transaction('a transaction in no mode', [], 'some'),
  transaction('a grouped transaction that aborts', [abort], 'grouped'),
  exchange('jobs after that', 'query-jobs'),
  reaches('h', 'pending', transaction('a grouped transaction', pairs, 'grouped')),
  exchange('the jobs of a group', 'query-jobs'),
  reaches('h', 'concluded', exchange('finalize a group', 'job-finalize', { id: 'g' })),
  exchange('a group that has ended', 'query-jobs'),
  gone('g', exchange('dismiss the one', 'job-dismiss', { id: 'g' })),
  gone('h', exchange('dismiss the other', 'job-dismiss', { id: 'h' })),
  reaches('h', 'pending', transaction('another group', pairs, 'grouped')),
  reaches('g', 'concluded', exchange('cancel one of a group', 'job-cancel', { id: 'h' })),
  exchange('a group that was cancelled', 'query-jobs'),
  gone('g', exchange('dismiss the one that was cancelled', 'job-dismiss', { id: 'g' })),
  gone('h', exchange('dismiss the other that was', 'job-dismiss', { id: 'h' })),
  mirror('a mirror of a way that there is not', { sync: 'incremental' }),
  reaches('j', 'ready', mirror('a mirror', { 'on-target-error': 'enospc' })),
  exchange('a mirror that is ready', 'query-jobs'),
  backup('a backup of what is mirrored', { 'job-id': 'k', target: 'ju' }),
  gone('j', exchange('cancel a mirror', 'job-cancel', { id: 'j' })),
  exchange('no jobs in the end', 'query-block-jobs'),
];
