/** The virtio-blk device: its configuration and the life of its queues. Requests are blk-queue.ts's. */
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import type { Logger } from '../../base/log.js';
import { needsMainThread, sharedByQueues } from '../../block/engine.js';
import type { BlockNode } from '../../block/node.js';
import type { MemoryRegion } from '../../memory/guest-memory.js';
import { describeErrno } from '../../native/errno.js';
import { checkInteger, checkPowerOfTwo } from '../check-number.js';
import type { IoError, NamedThread, QueueHost, QueueHosts, QueueListener } from '../queue-host.js';
import { nextQueueId } from '../queue-id.js';
import { type DeviceStatistics, QueueField, SharedDeviceState } from '../statistics.js';
import {
  type Activation,
  DeviceId,
  type DeviceListener,
  type QueueActivation,
  type QuiesceOptions,
  type QuiesceResult,
  type VirtioDevice,
} from '../virtio-device.js';
import { blkFeatures, encodeBlkConfig } from './blk-config.js';
import type { BlkQueueSpec } from './blk-queue-spec.js';

export interface BlkDeviceOptions {
  readonly node: BlockNode;
  readonly hosts: QueueHosts;
  readonly logger: Logger;
  readonly writable: boolean;
  /** From 1 to limits.queueCountMax; 1 when absent. */
  readonly queueCount?: number;
  /** Elements of each queue, a power of two; 256 when absent. */
  readonly queueSize?: number;
  /** Bytes, a power of two from 512 to 4096; the node's alignment when absent. */
  readonly logicalBlockSize?: number;
  /** Up to 20 bytes, which the front-end reads with GET_ID. */
  readonly serial?: string;
  /**
   * How long a queue's thread may look for requests before it sleeps, microseconds, at most 1000; 0: not at all.
   * When absent, 100 where requests can end while the thread submits them, 0 for O_DIRECT (docs/performance.md).
   */
  readonly pollUs?: number;
  /** Told of requests that failed, of each queue at most once a second. */
  readonly onIoError?: (error: IoError) => void;
  /** Threads for the queues, in turn; the process's pool when absent. */
  readonly threads?: readonly NamedThread[];
}

const defaultQueueSize = 256;
/** Longer than a front-end that sleeps takes to wake (60 us on a quiet virtual machine), or both sleep in turn. */
const defaultPollUs = 100;
/** A disk works while the next requests are prepared: it is handed a few at a time. Measured, docs/performance.md. */
const directBatch = 8;
/** The longest segment that is asked for: the kernel's largest request is far smaller. */
const segmentBytesMax = 4 << 20;
const rangeBytesMax = 1 << 30;
/** No vendor of the PCI registry: VDUSE and vhost-user devices have none. */
const vendorId = 0;

const sharedHosts = new WeakMap<object, Promise<QueueHost>>();

export class BlkDevice implements VirtioDevice {
  readonly deviceId = DeviceId.BLOCK;
  readonly vendorId = vendorId;
  readonly deviceFeatures: bigint;
  readonly queueCount: number;
  readonly queueSizeMax: number;
  readonly blockSize: number;
  readonly readOnly: boolean;
  readonly serial: string;
  readonly #pollUs: number;
  readonly #node: BlockNode;
  readonly #logger: Logger;
  readonly #onIoError: ((error: IoError) => void) | undefined;
  readonly #shared: SharedDeviceState;
  readonly #hosts: QueueHosts;
  readonly #namedThreads: readonly NamedThread[] | undefined;
  /** The queue threads, once they were needed. */
  #threads: readonly QueueHost[] | undefined;
  readonly #running = new Map<number, { id: number; host: QueueHost }>();
  /** Queues, by id, that told of missing memory and have no answer yet. */
  readonly #missing = new Set<number>();
  #listener: DeviceListener | undefined;
  /** What the queues run with; undefined while the driver has not started the device. */
  #activation: Activation | undefined;
  /** Settles when the changes under way (see `drained`) are over. */
  #changes: Promise<void> = Promise.resolve();
  /** Where the queues stopped for a change. */
  #stoppedAt: ReadonlyMap<number, number> = new Map();

  /** Makes the device; its queues start with `activate`. Throws INVALID_ARGUMENT for options out of range. */
  static async create(options: BlkDeviceOptions): Promise<BlkDevice> {
    const queueCount = options.queueCount ?? 1;
    checkInteger('number of queues', queueCount, { min: 1, max: limits.queueCountMax });
    const device = new BlkDevice(options, queueCount);
    await device.#chooseHosts();
    return device;
  }

  private constructor(options: BlkDeviceOptions, queueCount: number) {
    const { node } = options;
    this.queueCount = queueCount;
    this.queueSizeMax = options.queueSize ?? defaultQueueSize;
    checkPowerOfTwo('queue size', this.queueSizeMax, { min: limits.queueSizeMin, max: limits.queueSizeMax });
    this.blockSize = options.logicalBlockSize ?? Math.max(512, node.limits.requestAlignment);
    checkPowerOfTwo('logical block size', this.blockSize, { min: 512, max: 4096 });
    if (this.blockSize < node.limits.requestAlignment) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `logical block size ${this.blockSize}: the image is opened so that it takes requests of ${node.limits.requestAlignment} bytes at least`,
        { hint: 'Leave the block size out, or open the image without cache.direct=on.' },
      );
    }
    this.serial = options.serial ?? '';
    if (new TextEncoder().encode(this.serial).length > limits.serialBytesMax) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `serial '${this.serial}' is too long: virtio-blk has room for ${limits.serialBytesMax} bytes`,
      );
    }
    this.#pollUs = options.pollUs ?? (node.cacheDirect ? 0 : defaultPollUs);
    checkInteger('poll time', this.#pollUs, { min: 0, max: limits.pollUsMax });
    this.readOnly = !options.writable || node.readOnly;
    this.#node = node;
    this.#logger = options.logger;
    this.#onIoError = options.onIoError;
    this.#hosts = options.hosts;
    this.#namedThreads = options.threads;
    this.#shared = new SharedDeviceState({ queueCount });
    this.#shared.capacityBytes = this.#capacity();
    this.deviceFeatures = blkFeatures({
      readOnly: this.readOnly,
      flush: node.features.flush,
      discard: node.features.discard && !this.readOnly,
      writeZeroes: node.features.writeZeroes && !this.readOnly,
      multiQueue: queueCount > 1,
    });
  }

  get config(): Uint8Array {
    const { limits: nodeLimits } = this.#node;
    return encodeBlkConfig({
      capacityBytes: this.#capacity(),
      sizeMax: segmentBytesMax,
      // A request's header and status take two descriptors of a chain that is no longer than the queue.
      segMax: Math.min(this.queueSizeMax, limits.requestSegmentsMax) - 2,
      blockSize: this.blockSize,
      physicalBlockSize: Math.max(this.blockSize, nodeLimits.physicalBlockSize),
      minIoSize: Math.max(this.blockSize, nodeLimits.physicalBlockSize),
      optimalIoSize: nodeLimits.optimalIoSize,
      queueCount: this.queueCount,
      maxRangeBytes: rangeBytesMax,
      maxRangeSegments: limits.rangeSegmentsMax,
      discardAlignment: Math.max(this.blockSize, nodeLimits.discardAlignment),
      writeZeroesMayUnmap: this.#node.features.writeZeroesMayUnmap,
    });
  }

  /** The shared counters, for those who ask how long requests take. */
  get counters(): SharedDeviceState {
    return this.#shared;
  }

  get statistics(): DeviceStatistics {
    return this.#shared.total();
  }

  setListener(listener: DeviceListener | undefined): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    await this.#changes;
    const running = this.#activation?.queues ?? [];
    const started = new Set(activation.queues.map(({ index }) => index));
    const queues = [...running.filter(({ index }) => !started.has(index)), ...activation.queues];
    this.#activation = { ...activation, queues };
    await this.#startQueues(activation);
  }

  async quiesce(options: QuiesceOptions): Promise<QuiesceResult> {
    const { timeoutMs, queues } = options;
    const isMeant = (index: number): boolean => queues?.includes(index) ?? true;
    this.#forget(isMeant);
    const { drained, availIndices } = await this.#stopQueues(timeoutMs, isMeant);
    const all = new Map([...[...this.#stoppedAt].filter(([index]) => isMeant(index)), ...availIndices]);
    this.#stoppedAt = new Map([...this.#stoppedAt].filter(([index]) => !isMeant(index)));
    return { drained, availIndices: all };
  }

  /**
   * Waits until nothing is in flight, runs `change`, and goes on with the engine that the node has then; also when
   * the change fails. The driver sees requests that take longer. Throws TIMEOUT when requests last longer than that: they
   * go on, and nothing was changed.
   */
  drained(change: () => Promise<void>, timeoutMs: number = limits.drainMsMax): Promise<void> {
    const done = this.#changes.then(() => this.#drained(change, timeoutMs));
    this.#changes = done.catch(() => undefined);
    return done;
  }

  updateMemory(regions: readonly MemoryRegion[]): void {
    if (this.#activation !== undefined) {
      this.#activation = { ...this.#activation, memory: regions };
    }
    for (const { id, host } of this.#running.values()) {
      host.updateMemory(id, { regions, answersMiss: this.#missing.delete(id) });
    }
  }

  availIndex(queue: number): number {
    return this.#shared.queue(queue)[QueueField.AVAIL_INDEX];
  }

  /** The node has another size: the queues see it at once, the front-end is told. */
  resized(): void {
    this.#shared.capacityBytes = this.#capacity();
    this.#listener?.onConfigChange();
  }

  /** Whole blocks only: the front-end could not address the rest. */
  #capacity(): number {
    return Math.floor(this.#node.size / this.blockSize) * this.blockSize;
  }

  async #drained(change: () => Promise<void>, timeoutMs: number): Promise<void> {
    const stops = await this.#drainQueues(timeoutMs);
    if (this.#activation !== undefined) {
      this.#stoppedAt = new Map(
        stops.filter(({ drained }) => drained).map(({ index, availIndex }) => [index, availIndex]),
      );
    }
    try {
      if (stops.some(({ drained }) => !drained)) {
        throw new VduseError(
          'TIMEOUT',
          `requests on block node '${this.#node.nodeName}' did not end in ${timeoutMs / 1000} s: nothing below them was changed`,
          { hint: 'Its storage does not answer. Try again when it does.' },
        );
      }
      await change();
    } finally {
      await this.#resume();
    }
  }

  /** Those that do not end in time go on. */
  async #drainQueues(timeoutMs: number): Promise<{ index: number; drained: boolean; availIndex: number }[]> {
    const running = [...this.#running];
    return Promise.all(
      running.map(async ([index, { id, host }]) => {
        const stop = await host.drain(id, timeoutMs);
        if (stop.drained) {
          this.#missing.delete(id);
          if (this.#running.get(index)?.id === id) {
            this.#running.delete(index);
          }
        }
        return { index, ...stop };
      }),
    );
  }

  /** Starts the queues where they stopped, unless the driver has stopped the device meanwhile. */
  async #resume(): Promise<void> {
    if (this.#capacity() !== this.#shared.capacityBytes) {
      this.resized();
    }
    if (this.#activation === undefined) {
      return;
    }
    const stopped = this.#activation.queues.filter(({ index }) => !this.#running.has(index));
    const queues = stopped.map((queue) => ({
      ...queue,
      availIndex: this.#stoppedAt.get(queue.index) ?? queue.availIndex,
    }));
    this.#stoppedAt = new Map();
    await this.#startQueues({ ...this.#activation, queues });
  }

  /** Takes queues out of what runs, or goes on after a change. */
  #forget(isMeant: (index: number) => boolean): void {
    const queues = this.#activation?.queues.filter(({ index }) => !isMeant(index)) ?? [];
    this.#activation =
      queues.length === 0 || this.#activation === undefined ? undefined : { ...this.#activation, queues };
  }

  async #stopQueues(
    timeoutMs: number,
    isMeant: (index: number) => boolean = () => true,
  ): Promise<QuiesceResult> {
    const running = [...this.#running].filter(([index]) => isMeant(index));
    const stops = await Promise.all(
      running.map(async ([index, { id, host }]) => {
        const stop = await host.stop(id, timeoutMs);
        this.#missing.delete(id);
        if (this.#running.get(index)?.id === id) {
          this.#running.delete(index);
        }
        return { index, ...stop };
      }),
    );
    return {
      drained: stops.every((stop) => stop.drained),
      availIndices: new Map(stops.map((stop) => [stop.index, stop.availIndex])),
    };
  }

  /** One for each queue: the engine decides whether that is a thread. */
  async #chooseHosts(): Promise<readonly QueueHost[]> {
    if (needsMainThread(this.#node.engine)) {
      return new Array<QueueHost>(this.queueCount).fill(this.#hosts.local());
    }
    const shared = sharedByQueues(this.#node.engine);
    if (shared !== undefined) {
      return new Array<QueueHost>(this.queueCount).fill(await this.#sharedHost(shared));
    }
    this.#threads ??= await this.#hosts.assign(this.queueCount, this.#namedThreads);
    return this.#threads;
  }

  /** The one host for all queues on what they share, other devices' included. */
  #sharedHost(shared: object): Promise<QueueHost> {
    let host = sharedHosts.get(shared);
    if (host === undefined) {
      host = this.#hosts.assign(1, this.#namedThreads).then(([only]) => only);
      sharedHosts.set(shared, host);
      // Whoever comes next may try again.
      host.catch(() => sharedHosts.delete(shared));
    }
    return host;
  }

  async #startQueues(activation: Activation): Promise<void> {
    const hosts = await this.#chooseHosts();
    const starts = activation.queues.map((queue) => this.#startQueue(queue, activation, hosts[queue.index]));
    // All of them: a queue that started later would run on memory that the caller may have unmapped by then.
    const results = await Promise.allSettled(starts);
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
  }

  async #startQueue(queue: QueueActivation, activation: Activation, host: QueueHost): Promise<void> {
    const spec: BlkQueueSpec = {
      kind: 'blk',
      id: nextQueueId(),
      queue,
      features: activation.features,
      memory: activation.memory,
      engine: this.#node.engine,
      readOnly: this.readOnly,
      detectZeroes: this.#node.detectZeroes,
      requestAlignment: Math.max(512, this.#node.limits.requestAlignment),
      rangeBytesMax,
      serial: this.serial,
      shared: this.#shared.buffer,
      pollUs: this.#pollUs,
      batch: this.#node.cacheDirect ? directBatch : limits.batchMax,
    };
    // Before it runs: a start that is not answered in time is to be stopped too.
    this.#running.set(queue.index, { id: spec.id, host });
    await host.start(spec, this.#queueListener(queue.index, spec.id));
  }

  #queueListener(index: number, id: number): QueueListener {
    const node = this.#node.filename ?? this.#node.nodeName;
    return {
      onBroken: (reason) => this.#listener?.onNeedsReset(reason, index),
      onMemoryMiss: () => {
        this.#missing.add(id);
        this.#listener?.onMemoryMiss();
      },
      onErrors: (count, error) => {
        const { name, text } = describeErrno(error.errno);
        this.#onIoError?.(error);
        this.#logger.error(
          { node, queue: index, count, errno: name },
          `${count} I/O error${count === 1 ? '' : 's'} on '${node}': ${text} (${name})`,
        );
      },
    };
  }
}
