/** Makes an image in a Ceph cluster, with the features and the format of its configuration. */
import { VduseError } from '../../../base/errors.js';
import { closePool, createPoolImage, openPool, removePoolImage } from '../../../native/librbd-control.js';
import type { CreateContext } from '../../create.js';
import type { RbdNodeOptions } from '../../node.js';
import { acquireCluster, type ClusterConnection } from './rbd-cluster.js';
import { imageName, rbdError } from './rbd-errors.js';
import { within } from './within.js';

export interface RbdImageOptions {
  readonly driver: 'rbd';
  /** Which image of which cluster. */
  readonly location: Omit<RbdNodeOptions, 'nodeName'>;
  /** Bytes, rounded up to a whole sector. */
  readonly size: number;
  /** Bytes of one object, a power of two; what the configuration says when absent. */
  readonly clusterSize?: number;
}

const sectorBytes = 512;
const clusterSizeMin = 4096;
/** librbd's own limit. */
const clusterSizeMax = 32 << 20;

/** Throws INVALID_ARGUMENT, ALREADY_EXISTS, and what opening an image throws. */
export async function createRbdImage(options: RbdImageOptions, context: CreateContext): Promise<void> {
  const order = checkOptions(options);
  const location: RbdNodeOptions = { nodeName: 'new', ...options.location };
  const cluster = await acquireCluster(location, context.services);
  const pool = await openPool(cluster.handle, location.pool, location.namespace ?? '');
  if (pool < 0) {
    await cluster.release();
    throw rbdError(location, 'open the pool of', pool);
  }
  const size = Math.ceil(options.size / sectorBytes) * sectorBytes;
  await createWithin({ location, cluster, pool, size, order });
  await context.onProgress(size, size);
}

/** Returns log2 of the size of objects, 0 for the configuration's. */
function checkOptions({ location, clusterSize }: RbdImageOptions): number {
  if (location.snapshot !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', "Can't use snapshot name for image creation");
  }
  if (clusterSize === undefined) {
    return 0;
  }
  if (clusterSize < clusterSizeMin || clusterSize > clusterSizeMax) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `cluster-size ${clusterSize} is not from ${clusterSizeMin} to ${clusterSizeMax} bytes`,
    );
  }
  const order = Math.log2(clusterSize);
  if (!Number.isInteger(order)) {
    throw new VduseError('INVALID_ARGUMENT', 'cluster-size needs to be a power of 2');
  }
  return order;
}

interface Creation {
  readonly location: RbdNodeOptions;
  readonly cluster: ClusterConnection;
  readonly pool: number;
  readonly size: number;
  readonly order: number;
}

/** Makes the image, or gives up: one that is made after that is removed again. Owns cluster and pool. */
async function createWithin({ location, cluster, pool, size, order }: Creation): Promise<void> {
  const creating = createPoolImage(pool, { name: location.image, size, order });
  const release = async (): Promise<void> => {
    closePool(pool);
    await cluster.release();
  };
  // Ceph's 0 is for ever.
  const result = await (cluster.timeoutS === 0 ? creating : within(creating, cluster.timeoutS * 1000));
  if (result === undefined) {
    void creating.then(async (late) => {
      if (late === 0) {
        await removePoolImage(pool, location.image);
      }
      await release();
    });
    throw new VduseError(
      'TIMEOUT',
      `cannot create '${imageName(location)}': no OSD answered within ${cluster.timeoutS} s`,
      { hint: "'ceph -s' tells how the cluster is." },
    );
  }
  await release();
  if (result < 0) {
    throw rbdError(location, 'create', result);
  }
}
