/**
 * Options of librados and librbd whose defaults are made for other programs. A value that ceph.conf changed stays, and so
 * does one that a release of Ceph changed: it has its own idea of speed then. An image's own configuration
 * (`rbd config image set`) goes before all of it.
 */
import { availableParallelism } from 'node:os';
import { clusterOption, setClusterOption } from '../../../native/librbd-control.js';

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

/** Whether the option is as we want it. */
function tune(cluster: number, { name, cephDefault, ours }: TunedOption): boolean {
  if (clusterOption(cluster, name) === cephDefault) {
    setClusterOption(cluster, name, ours);
  }
  return clusterOption(cluster, name) === ours;
}

/** Before the cluster is connected. `cached`: librbd's cache is on, which may make writers wait for room. */
export function tuneCluster(cluster: number, { cached }: { readonly cached: boolean }): void {
  tune(cluster, prefetch);
  const neverWaits = throttles.map((option) => tune(cluster, option)).every((isSet) => isSet) && !cached;
  if (neverWaits && tune(cluster, dispatch) && availableParallelism() <= fewProcessors) {
    tune(cluster, completionThreads);
  }
}
