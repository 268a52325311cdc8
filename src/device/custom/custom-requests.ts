/**
 * Runs a user's device: hands each request's bytes to its function and writes the answer into the driver's
 * buffers. The data is copied, because user code may keep what it is given.
 */
import { limits } from '../../base/limits.js';
import { addressOf } from '../../native/ffi.js';
import { copyMemory } from '../../native/memory.js';
import type { Reactor } from '../../reactor/reactor.js';
import type { DescriptorChain } from '../../virtqueue/descriptor-chain.js';
import type { ChainHandler, DeviceQueue, DeviceQueueSpec } from '../device-queue.js';
import { QueueField } from '../statistics.js';

export interface DeviceRequest {
  /** The queue that it came from. */
  readonly queue: number;
  /** The features that the driver accepted. */
  readonly features: bigint;
  /** What the driver wrote: a copy, the device's to keep. */
  readonly data: Uint8Array;
  /** How many bytes an answer may have. */
  readonly writableBytes: number;
}

/** Ends a request with the bytes to write for the driver; nothing is an empty answer. */
export type RequestFunction = (
  request: DeviceRequest,
) => Promise<Uint8Array | undefined> | Uint8Array | undefined;

export interface CustomQueueSpec extends DeviceQueueSpec {
  readonly kind: 'custom';
  /** The device's number in the main thread's table. */
  readonly key: number;
}

export interface CustomRequestsContext {
  readonly reactor: Reactor;
  readonly onFailure: (error: unknown) => void;
}

/** The functions of the devices that exist, by the number in their CustomQueueSpec. */
const functions = new Map<number, RequestFunction>();
let nextKey = 1;

export function registerRequestFunction(handle: RequestFunction): number {
  functions.set(nextKey, handle);
  return nextKey++;
}

export function unregisterRequestFunction(key: number): void {
  functions.delete(key);
}

/** Memory for a copy, or undefined where the driver asks for more than there is. */
function allocate(length: number): Uint8Array | undefined {
  try {
    return length > limits.requestBytesMax ? undefined : new Uint8Array(new ArrayBuffer(length));
  } catch {
    return undefined;
  }
}

interface Segment {
  readonly address: number;
  readonly length: number;
}

export class CustomRequests implements ChainHandler {
  readonly #spec: CustomQueueSpec;
  readonly #queue: DeviceQueue;
  readonly #context: CustomRequestsContext;
  readonly #handle: RequestFunction;
  /** Where the answers of requests in flight go, by head. */
  readonly #room = new Map<number, readonly Segment[]>();

  constructor(spec: CustomQueueSpec, queue: DeviceQueue, context: CustomRequestsContext) {
    const handle = functions.get(spec.key);
    if (handle === undefined) {
      throw new Error(`no device is registered under ${spec.key} on this thread`);
    }
    this.#spec = spec;
    this.#queue = queue;
    this.#context = context;
    this.#handle = handle;
  }

  onChain(head: number, chain: DescriptorChain): string | undefined {
    const data = allocate(chain.readableBytes);
    if (data === undefined) {
      return `a request of ${chain.readableBytes} bytes is too long to be copied`;
    }
    let at = 0;
    for (let n = 0; n < chain.readableCount; n++) {
      copyMemory(addressOf(data) + at, chain.hostAddress[n], chain.length[n]);
      at += chain.length[n];
    }
    const room: Segment[] = [];
    for (let n = chain.readableCount; n < chain.count; n++) {
      room.push({ address: chain.hostAddress[n], length: chain.length[n] });
    }
    this.#room.set(head, room);
    this.#queue.counters[QueueField.WRITE_BYTES] += data.length;
    const request: DeviceRequest = {
      queue: this.#spec.queue.index,
      features: this.#spec.features,
      data,
      writableBytes: chain.writableBytes,
    };
    this.#run(request).then(
      (answer) => this.#complete(head, room, answer),
      (error: unknown) => {
        this.#queue.counters[QueueField.ERRORS]++;
        // First the request: what is told may throw.
        this.#complete(head, room, undefined);
        this.#context.onFailure(error);
      },
    );
    return undefined;
  }

  /** Promises can't be cancelled; what they will answer is dropped, and their requests end empty. */
  cancel(): void {
    for (const [head, room] of [...this.#room]) {
      this.#complete(head, room, undefined);
    }
  }

  close(): void {}

  async #run(request: DeviceRequest): Promise<Uint8Array | undefined> {
    const answer: unknown = await this.#handle(request);
    if (answer !== undefined && !(answer instanceof Uint8Array)) {
      throw new TypeError('the answer to a request must be a Uint8Array, or undefined');
    }
    return answer;
  }

  #complete(head: number, room: readonly Segment[], answer: Uint8Array | undefined): void {
    if (this.#room.get(head) !== room) {
      // It was cancelled; its head may be another request's by now.
      return;
    }
    this.#room.delete(head);
    let written = 0;
    if (answer !== undefined && !this.#queue.abandoned) {
      for (const { address, length } of room) {
        const piece = Math.min(length, answer.length - written);
        if (piece > 0) {
          copyMemory(address, addressOf(answer) + written, piece);
          written += piece;
        }
      }
      this.#queue.counters[QueueField.READ_BYTES] += written;
    }
    this.#queue.complete(head, written);
    this.#context.reactor.wake();
  }
}
