/**
 * What a device's queues count, in memory that all threads share: each queue writes its own block, the
 * main thread reads. A number is a double of its own, so that no reader sees half of one.
 */

import { type LatencyMemory, latencyBlock, latencyOps } from './latency.js';

/** Fields of a queue's block. Counters only grow; IN_FLIGHT and AVAIL_INDEX are states. */
export const QueueField = {
  READS: 0,
  WRITES: 1,
  FLUSHES: 2,
  /** Discards and write-zeroes. */
  UNMAPS: 3,
  READ_BYTES: 4,
  WRITE_BYTES: 5,
  ERRORS: 6,
  IN_FLIGHT: 7,
  AVAIL_INDEX: 8,
  INTERRUPTS: 9,
  /** Written by the main thread: queues of this index up to this id were given up, for their thread did not answer. */
  ABANDONED_ID: 10,
} as const;

const deviceFields = 8;
const queueFields = 16;
const capacityField = 0;
const queueCountField = 1;
const timingField = 2;
const latencyFields = latencyOps * latencyBlock;

export interface DeviceStatistics {
  readonly reads: number;
  readonly writes: number;
  readonly flushes: number;
  readonly unmaps: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  readonly errors: number;
  readonly inFlight: number;
  readonly interrupts: number;
}

/** The shared state of one device: its capacity, which a resize changes under the queues, and its counters. */
export class SharedDeviceState {
  readonly buffer: SharedArrayBuffer;
  readonly #numbers: Float64Array;

  constructor(source: { queueCount: number } | SharedArrayBuffer) {
    this.buffer =
      source instanceof SharedArrayBuffer
        ? source
        : new SharedArrayBuffer((deviceFields + source.queueCount * (queueFields + latencyFields)) * 8);
    this.#numbers = new Float64Array(this.buffer);
    if (!(source instanceof SharedArrayBuffer)) {
      this.#numbers[queueCountField] = source.queueCount;
    }
  }

  get capacityBytes(): number {
    return this.#numbers[capacityField];
  }

  set capacityBytes(bytes: number) {
    this.#numbers[capacityField] = bytes;
  }

  /** One queue's block, by QueueField. Throws RangeError for a queue that there is not: drivers ask for any. */
  queue(index: number): Float64Array {
    if (index >= this.#numbers[queueCountField]) {
      throw new RangeError(`there is no queue ${index}`);
    }
    return new Float64Array(this.buffer, (deviceFields + index * queueFields) * 8, queueFields);
  }

  /** Whether queues count how long requests take, from their next request on. */
  set timing(isOn: boolean) {
    this.#numbers[timingField] = isOn ? 1 : 0;
  }

  /** One queue's latency counters. */
  latencies(index: number): LatencyMemory {
    const at = this.#latencyStart + index * latencyFields;
    return {
      timing: new Float64Array(this.buffer, timingField * 8, 1),
      blocks: new Float64Array(this.buffer, at * 8, latencyFields),
    };
  }

  /** The latency blocks of all queues, summed up, by LatencyOp. */
  totalLatencies(): Float64Array {
    const sum = new Float64Array(latencyFields);
    for (let at = this.#latencyStart; at < this.#numbers.length; at++) {
      sum[(at - this.#latencyStart) % latencyFields] += this.#numbers[at];
    }
    return sum;
  }

  get #latencyStart(): number {
    return deviceFields + this.#numbers[queueCountField] * queueFields;
  }

  /** The sums over all queues. */
  total(): DeviceStatistics {
    const sum = new Float64Array(queueFields);
    for (let at = deviceFields; at < this.#latencyStart; at++) {
      sum[(at - deviceFields) % queueFields] += this.#numbers[at];
    }
    return {
      reads: sum[QueueField.READS],
      writes: sum[QueueField.WRITES],
      flushes: sum[QueueField.FLUSHES],
      unmaps: sum[QueueField.UNMAPS],
      readBytes: sum[QueueField.READ_BYTES],
      writeBytes: sum[QueueField.WRITE_BYTES],
      errors: sum[QueueField.ERRORS],
      inFlight: sum[QueueField.IN_FLIGHT],
      interrupts: sum[QueueField.INTERRUPTS],
    };
  }
}
