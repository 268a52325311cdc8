/** A virtio device of any kind, of which the user writes the requests and the library does the rest. */
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import type { MemoryRegion } from '../../memory/guest-memory.js';
import { RING_F } from '../../virtqueue/layout.js';
import { checkInteger, checkPowerOfTwo } from '../check-number.js';
import type { QueueHost, QueueHosts } from '../queue-host.js';
import { nextQueueId } from '../queue-id.js';
import { takeQueues } from '../running-queues.js';
import { QueueField, SharedDeviceState } from '../statistics.js';
import type {
  Activation,
  DeviceListener,
  QuiesceOptions,
  QuiesceResult,
  VirtioDevice,
} from '../virtio-device.js';
import {
  type RequestFunction,
  registerRequestFunction,
  unregisterRequestFunction,
} from './custom-requests.js';

export interface DeviceDefinition {
  /** Virtio's number of the device type (virtio 1.3, 5): 1 network, 2 block. The driver decides which it takes. */
  readonly deviceId: number;
  /** The device type's own feature bits; those of the queues are added. */
  readonly features?: bigint;
  /** The configuration space. */
  readonly config?: Uint8Array;
  readonly queueCount: number;
  /** Elements of each queue, a power of two; 256 when absent. */
  readonly queueSize?: number;
  /** Called for every request, also before earlier ones have ended. */
  readonly onRequest: RequestFunction;
  /**
   * Called when the driver stops queues, all or some, before what is in flight is waited for: a device that keeps
   * requests until it has something to say (a network card's receive buffers) ends them here.
   */
  readonly onStop?: () => void;
  /** Called for a request whose function threw; it was answered with nothing. */
  readonly onError?: (error: unknown) => void;
}

const ringFeatures = [RING_F.INDIRECT_DESC, RING_F.EVENT_IDX, RING_F.VERSION_1].reduce(
  (features, bit) => features | (1n << BigInt(bit)),
  0n,
);

const defaultQueueSize = 256;
/** 2.2: bits 24 to 49 are the queues' and the transport's; a device type has the others. */
const deviceTypeFeatures = ((1n << 24n) - 1n) | (((1n << 14n) - 1n) << 50n);

function check(definition: DeviceDefinition): void {
  const { deviceId, queueCount, queueSize = defaultQueueSize, features = 0n, config } = definition;
  checkInteger('device type', deviceId, { min: 1, max: 0xffff_ffff });
  checkInteger('number of queues', queueCount, { min: 1, max: limits.queueCountMax });
  checkPowerOfTwo('queue size', queueSize, { min: 1, max: limits.queueSizeMax });
  checkInteger('length of the configuration space', config?.length ?? 0, {
    min: 0,
    max: limits.configSpaceBytesMax,
  });
  if ((features & ~deviceTypeFeatures) !== 0n) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `features 0x${features.toString(16)}: only bits 0 to 23 and 50 to 63 are a device type's own`,
    );
  }
}

export class CustomDevice implements VirtioDevice {
  readonly deviceId: number;
  readonly vendorId = 0;
  readonly deviceFeatures: bigint;
  readonly queueCount: number;
  readonly queueSizeMax: number;
  readonly #host: QueueHost;
  readonly #key: number;
  readonly #onStop: () => void;
  readonly #onError: (error: unknown) => void;
  readonly #shared: SharedDeviceState;
  readonly #running = new Map<number, number>();
  /** Queues, by id, that told of missing memory and have no answer yet. */
  readonly #missing = new Set<number>();
  #config: Uint8Array;
  #listener: DeviceListener | undefined;

  /** Throws INVALID_ARGUMENT for numbers out of range. */
  constructor(definition: DeviceDefinition, hosts: QueueHosts) {
    const { queueCount } = definition;
    check(definition);
    this.deviceId = definition.deviceId;
    this.deviceFeatures = (definition.features ?? 0n) | ringFeatures;
    this.queueCount = queueCount;
    this.queueSizeMax = definition.queueSize ?? defaultQueueSize;
    this.#config = definition.config ?? new Uint8Array(8);
    this.#host = hosts.local();
    this.#key = registerRequestFunction(definition.onRequest);
    this.#onStop = definition.onStop ?? (() => {});
    this.#onError = definition.onError ?? (() => {});
    this.#shared = new SharedDeviceState({ queueCount });
  }

  get config(): Uint8Array {
    return this.#config;
  }

  /** Changes the configuration space, which keeps its length, and interrupts the driver for it. */
  setConfig(config: Uint8Array): void {
    if (config.length !== this.#config.length) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `a configuration space of ${config.length} bytes: the device was made with ${this.#config.length}`,
      );
    }
    this.#config = config;
    this.#listener?.onConfigChange();
  }

  setListener(listener: DeviceListener | undefined): void {
    this.#listener = listener;
  }

  async activate(activation: Activation): Promise<void> {
    const { features, memory } = activation;
    for (const queue of activation.queues) {
      const id = nextQueueId();
      const spec = {
        kind: 'custom',
        id,
        queue,
        features,
        memory,
        shared: this.#shared.buffer,
        // The functions of users run on the main thread, which the event loop wakes.
        pollUs: 0,
        batch: limits.batchMax,
        key: this.#key,
      } as const;
      this.#running.set(queue.index, id);
      await this.#host.start(spec, {
        onBroken: (reason) => this.#listener?.onNeedsReset(reason, queue.index),
        onMemoryMiss: () => {
          this.#missing.add(id);
          this.#listener?.onMemoryMiss();
        },
        onErrors: () => {},
        onFailure: this.#onError,
      });
    }
  }

  async quiesce(options: QuiesceOptions): Promise<QuiesceResult> {
    const running = takeQueues(this.#running, options);
    for (const [, id] of running) {
      this.#missing.delete(id);
    }
    try {
      this.#onStop();
    } catch (error) {
      // The queues stop all the same.
      this.#onError(error);
    }
    const stops = await Promise.all(
      running.map(async ([index, id]) => ({ index, ...(await this.#host.stop(id, options.timeoutMs)) })),
    );
    return {
      drained: stops.every((stop) => stop.drained),
      availIndices: new Map(stops.map((stop) => [stop.index, stop.availIndex])),
    };
  }

  /** Forgets the user's function. The queues have been stopped before. */
  close(): void {
    unregisterRequestFunction(this.#key);
  }

  updateMemory(regions: readonly MemoryRegion[]): void {
    for (const id of this.#running.values()) {
      this.#host.updateMemory(id, { regions, answersMiss: this.#missing.delete(id) });
    }
  }

  availIndex(queue: number): number {
    return this.#shared.queue(queue)[QueueField.AVAIL_INDEX];
  }
}
