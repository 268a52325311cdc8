/** The block driver `rbd`: images of a Ceph cluster, with QEMU's options. */
import { VduseError } from '../../../base/errors.js';
import { closeFd, createEventFd } from '../../../native/fd.js';
import {
  closeImage,
  closePool,
  imageGeometry,
  imageSize,
  openImage,
  openPool,
  resizeImage,
  setImageNotification,
} from '../../../native/librbd-control.js';
import type { RbdEngineSpec } from '../../engine.js';
import type {
  BlockFeatures,
  BlockLimits,
  BlockNode,
  BlockNodeListener,
  BlockServices,
  RbdNodeOptions,
} from '../../node.js';
import { acquireCluster, type ClusterConnection } from './rbd-cluster.js';
import { imageName, rbdError } from './rbd-errors.js';
import { lockImage } from './rbd-lock.js';
import { closeRbdShared, createRbdShared, RbdShared } from './rbd-shared.js';
import { within } from './within.js';

const sectorBytes = 512;
/** What an OSD allocates and writes at once. */
const physicalBlockBytes = 4096;
/** How often the size is asked for. It costs no message: librbd hears of changes by itself. */
const sizePollMs = 1000;
/** Requests in flight and the cache's contents go to the cluster before an image is closed. */
const closeTimeoutMs = 30_000;

interface OpenedImage {
  readonly cluster: ClusterConnection;
  readonly pool: number;
  readonly image: number;
}

/** Opens an image. Throws what rbd-errors.ts says, or IMAGE_LOCKED; nothing stays open then. */
export async function openRbdNode(options: RbdNodeOptions, services: BlockServices): Promise<BlockNode> {
  const readOnly = isReadOnly(options);
  const cluster = await acquireCluster(options, services);
  let pool = 0;
  try {
    pool = await openPool(cluster.handle, options.pool, options.namespace ?? '');
    if (pool < 0) {
      throw rbdError(options, 'open the pool of', pool);
    }
  } catch (error) {
    await cluster.release();
    throw error;
  }
  const image = await openWithin({ options, readOnly, cluster, pool });
  try {
    const geometry = await imageGeometry(image);
    if (typeof geometry === 'number') {
      throw rbdError(options, 'read the size of', geometry);
    }
    checkSize(options, geometry.size);
    if (!readOnly) {
      await lockImage({ pool, image, options, services });
    }
    return new RbdNode({ options, readOnly, services, opened: { cluster, pool, image }, geometry });
  } catch (error) {
    await closeImage(image);
    await closeOpened(cluster, pool);
    throw error;
  }
}

function isReadOnly(options: RbdNodeOptions): boolean {
  if (options.detectZeroes === 'unmap' && options.discard !== 'unmap') {
    throw new VduseError(
      'INVALID_ARGUMENT',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    );
  }
  if (options.readOnly === true || options.snapshot === undefined) {
    return options.readOnly ?? false;
  }
  if (options.autoReadOnly !== true) {
    throw new VduseError('IMAGE_READ_ONLY', 'rbd snapshots are read-only', {
      hint: 'Open the snapshot with read-only=on.',
    });
  }
  return true;
}

function checkSize(options: RbdNodeOptions, size: number): void {
  if (size % sectorBytes !== 0) {
    throw new VduseError(
      'IMAGE_INVALID',
      `cannot use '${imageName(options)}': its size of ${size} bytes is not a multiple of ${sectorBytes}`,
    );
  }
}

async function closeOpened(cluster: ClusterConnection, pool: number): Promise<void> {
  closePool(pool);
  await cluster.release();
}

/** Opens the image, or gives up: whatever comes of it later is closed then. Owns cluster and pool when it throws. */
async function openWithin(request: {
  options: RbdNodeOptions;
  readOnly: boolean;
  cluster: ClusterConnection;
  pool: number;
}): Promise<number> {
  const { options, readOnly, cluster, pool } = request;
  const opening = openImage(pool, { name: options.image, snapshot: options.snapshot, readOnly });
  // Ceph's 0 is for ever.
  const image = await (cluster.timeoutS === 0 ? opening : within(opening, cluster.timeoutS * 1000));
  if (image === undefined) {
    void opening.then(async (late) => {
      if (late > 0) {
        await closeImage(late);
      }
      await closeOpened(cluster, pool);
    });
    throw new VduseError(
      'TIMEOUT',
      `cannot open '${imageName(options)}': no OSD answered within ${cluster.timeoutS} s`,
      { hint: "'ceph -s' tells how the cluster is." },
    );
  }
  if (image < 0) {
    await closeOpened(cluster, pool);
    throw rbdError(options, 'open', image);
  }
  return image;
}

class RbdNode implements BlockNode {
  readonly nodeName: string;
  readonly driver = 'rbd';
  readonly filename: string;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly detectZeroes;
  readonly features: BlockFeatures;
  readonly limits: BlockLimits;
  readonly engine: RbdEngineSpec;
  readonly #options: RbdNodeOptions;
  readonly #services: BlockServices;
  readonly #opened: OpenedImage;
  readonly #shared: RbdShared;
  #listener: BlockNodeListener | undefined;
  readonly #timer: NodeJS.Timeout;
  /** The look at the size that is under way, and a resize of ours, which it is not to tell of. */
  #polling: Promise<void> | undefined;
  #resizing = false;
  #closing: Promise<void> | undefined;

  constructor(context: {
    options: RbdNodeOptions;
    readOnly: boolean;
    services: BlockServices;
    opened: OpenedImage;
    geometry: { size: number; objectSize: number };
  }) {
    const { options, readOnly, opened, geometry } = context;
    const unmap = options.discard === 'unmap' && !readOnly;
    this.nodeName = options.nodeName;
    this.filename = `rbd:${imageName(options)}`;
    this.readOnly = readOnly;
    this.cacheDirect = options.cache?.direct ?? false;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.detectZeroes = options.detectZeroes ?? 'off';
    this.features = { flush: true, discard: unmap, writeZeroes: !readOnly, writeZeroesMayUnmap: unmap };
    this.limits = {
      requestAlignment: sectorBytes,
      physicalBlockSize: physicalBlockBytes,
      optimalIoSize: geometry.objectSize,
      discardAlignment: physicalBlockBytes,
    };
    this.#options = options;
    this.#services = context.services;
    this.#opened = opened;
    const shared = createRbdShared();
    this.#shared = new RbdShared(shared);
    this.#shared.imageBytes = geometry.size;
    this.engine = {
      kind: 'rbd',
      image: opened.image,
      notifyFd: createEventFd(),
      shared,
      noFlush: this.cacheNoFlush,
      ignoreDiscard: !unmap,
    };
    const result = setImageNotification(opened.image, this.engine.notifyFd);
    if (result < 0) {
      this.#releaseMemory();
      throw rbdError(options, 'watch', result);
    }
    this.#timer = setInterval(() => this.#pollSize(), sizePollMs);
    this.#timer.unref();
  }

  get size(): number {
    return this.#shared.imageBytes;
  }

  watch(listener: BlockNodeListener): void {
    this.#listener = listener;
  }

  async resize(size: number): Promise<void> {
    const name = imageName(this.#options);
    if (this.readOnly) {
      throw new VduseError('IMAGE_READ_ONLY', `cannot resize '${name}': it is open read-only`);
    }
    if (!Number.isSafeInteger(size) || size < 0 || size % sectorBytes !== 0) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `cannot resize '${name}' to ${size} bytes: not a multiple of ${sectorBytes}`,
      );
    }
    this.#resizing = true;
    try {
      // What is cut off is out of reach before it goes, or a write to it would be lost without a word.
      this.#shared.imageBytes = Math.min(this.size, size);
      const result = await resizeImage(this.#opened.image, size);
      if (result < 0) {
        throw rbdError(this.#options, 'resize', result);
      }
      this.#shared.imageBytes = size;
    } catch (error) {
      const now = await imageSize(this.#opened.image);
      this.#shared.imageBytes = now < 0 ? this.size : now;
      throw error;
    } finally {
      this.#resizing = false;
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    clearInterval(this.#timer);
    const result = await within(this.#closeImage(), closeTimeoutMs);
    if (result === undefined) {
      throw new VduseError(
        'TIMEOUT',
        `'${imageName(this.#options)}' does not close: the cluster has not answered within ${closeTimeoutMs / 1000} s`,
        {
          hint: "'ceph -s' tells how the cluster is. The image closes when it answers, or with the process.",
        },
      );
    }
    if (result < 0) {
      throw rbdError(this.#options, 'close', result);
    }
  }

  async #closeImage(): Promise<number> {
    const { cluster, pool, image } = this.#opened;
    await this.#polling;
    const result = await closeImage(image);
    await closeOpened(cluster, pool);
    this.#releaseMemory();
    return result;
  }

  #releaseMemory(): void {
    closeFd(this.engine.notifyFd);
    closeRbdShared(this.engine.shared);
  }

  #pollSize(): void {
    if (this.#polling === undefined && !this.#resizing) {
      this.#polling = this.#lookAtSize().finally(() => {
        this.#polling = undefined;
      });
    }
  }

  async #lookAtSize(): Promise<void> {
    const size = await imageSize(this.#opened.image);
    const before = this.size;
    if (size < 0 || size === before || this.#resizing) {
      return;
    }
    const whole = Math.floor(size / sectorBytes) * sectorBytes;
    this.#shared.imageBytes = whole;
    this.#services.logger.info(
      { node: this.nodeName },
      `'${imageName(this.#options)}' has been resized elsewhere, from ${before} to ${whole} bytes`,
    );
    this.#listener?.onResize();
  }
}
