/**
 * Options of librados and librbd whose defaults are made for other programs. A value that ceph.conf changed stays, and so
 * does one that a release of Ceph changed: it has its own idea of speed then. An image's own configuration
 * (`rbd config image set`) goes before all of it.
 */
import { availableParallelism } from 'node:os';
import { clusterOption, setClusterOption } from '../../../native/librbd-control.js';

/** Seconds that a step of opening may take. */
export const defaultTimeoutS = 30;

interface TunedOption {
  readonly name: string;
  readonly cephDefault: string;
  readonly ours: string;
}

/**
 * How much of a socket the messenger takes with one call, bytes. Ceph's is less than an answer to a read of 4 KiB with
 * its headers; with more, its thread needs a tenth less processor time for such a read.
 */
const prefetch: TunedOption = {
  name: 'ms_tcp_prefetch_max_size',
  cephDefault: '4096',
  ours: '65536',
};

/**
 * Requests and bytes in flight, beyond which a caller is made to wait. Rings bound both, and a queue thread may not wait:
 * it would not hear of anything until the cluster answers.
 */
const throttles: readonly TunedOption[] = [
  { name: 'objecter_inflight_ops', cephDefault: '1024', ours: '0' },
  { name: 'objecter_inflight_op_bytes', cephDefault: '104857600', ours: '0' },
];

/** Requests are started on the calling thread, without a way over a thread of librbd's, a wake each. */
const dispatch: TunedOption = { name: 'rbd_non_blocking_aio', cephDefault: 'true', ours: 'false' };

/** Where all share two processors, one thread for librbd's completions takes them in larger batches than two. */
const completionThreads: TunedOption = { name: 'librados_thread_count', cephDefault: '2', ours: '1' };
const fewProcessors = 2;

/** For its monitors Ceph waits 300 s, and for ever for their answers; nobody who waits for a command does. */
const patience: readonly TunedOption[] = [
  { name: 'client_mount_timeout', cephDefault: '300', ours: `${defaultTimeoutS}` },
  { name: 'rados_mon_op_timeout', cephDefault: '0', ours: `${defaultTimeoutS}` },
];

/** Releases of Ceph write the same number in several ways. */
function isSame(value: string | undefined, other: string): boolean {
  return value === other || Number(value) === Number(other);
}

/** Whether the option is as we want it, now. */
function tune(cluster: number, { name, cephDefault, ours }: TunedOption): boolean {
  const value = clusterOption(cluster, name);
  return isSame(value, ours) || (isSame(value, cephDefault) && setClusterOption(cluster, name, ours) >= 0);
}

/** Before the cluster is connected. `cached`: librbd's cache is on, which may make writers wait for room. */
export function tuneCluster(cluster: number, { cached }: { readonly cached: boolean }): void {
  for (const option of [...patience, prefetch]) {
    tune(cluster, option);
  }
  const neverWaits = throttles.map((option) => tune(cluster, option)).every((isSet) => isSet) && !cached;
  if (neverWaits && tune(cluster, dispatch) && availableParallelism() <= fewProcessors) {
    tune(cluster, completionThreads);
  }
}
