// Hot file: synchronous, no allocation per request, no throw after construction.
/**
 * Ceph RBD images through librbd, without a copy on our side: librbd gets the guest's buffers by address and tells
 * of completions through an eventfd, so that no callback ever enters JavaScript.
 */
import { Errno } from '../../../native/errno.js';
import { addressOf } from '../../../native/ffi.js';
import { loadLibrbd } from '../../../native/librbd.js';
import type { Reactor } from '../../../reactor/reactor.js';
import {
  type BlockCompletionSink,
  type BlockEngine,
  BlockFlag,
  BlockOp,
  type RbdEngineSpec,
} from '../../engine.js';
import type { RequestTable } from '../../request-table.js';
import { completionArgument, portOf, type RbdCompletionTarget } from './rbd-port.js';

const Step = { IDLE: 0, OPERATION: 1, SYNC: 2 } as const;
/** Beside 0 and negative errnos: the request goes on. */
const goesOn = 1;
const two32 = 0x1_0000_0000;
const WRITE_ZEROES_FLAG_THICK_PROVISION = 1;

export class RbdEngine implements BlockEngine, RbdCompletionTarget {
  readonly slots: number;
  readonly #library = loadLibrbd();
  readonly #spec: RbdEngineSpec;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #port;
  readonly #number: number;
  readonly #step: Uint8Array;
  /** The slot's completion, an address. */
  readonly #completion: Float64Array;
  readonly #out = new Uint32Array(new ArrayBuffer(8));
  readonly #outAddress = addressOf(this.#out);

  constructor(spec: RbdEngineSpec, table: RequestTable, sink: BlockCompletionSink, reactor: Reactor) {
    this.slots = table.capacity;
    this.#spec = spec;
    this.#table = table;
    this.#sink = sink;
    this.#step = new Uint8Array(table.capacity);
    this.#completion = new Float64Array(table.capacity);
    this.#port = portOf(spec, reactor);
    this.#number = this.#port.attach(this);
  }

  submit(slot: number): void {
    const table = this.#table;
    const op = table.op[slot];
    const ignored =
      (op === BlockOp.FLUSH && this.#spec.noFlush) || (op === BlockOp.DISCARD && this.#spec.ignoreDiscard);
    if (ignored) {
      this.#sink.onBlockComplete(slot, 0);
    } else if (!this.#isInside(slot)) {
      this.#sink.onBlockComplete(slot, -Errno.EIO);
    } else {
      this.#start(slot, Step.OPERATION);
    }
  }

  /** librbd can't take an operation back. */
  cancel(): void {}

  /** librbd writes to the buffers it was given, whose memory stays mapped until it has. */
  abandon(): void {}

  close(): void {
    this.#port.detach(this.#number);
  }

  onEvent(slot: number): void {
    if (this.#step[slot] === Step.IDLE) {
      return;
    }
    const completion = this.#completion[slot];
    // librbd goes on with the completion for a moment, on a reference of its own; the result is final before the event,
    // and a wait for that moment would cost a sleep.
    const result = this.#library.returnValue(completion);
    this.#library.release(completion);
    const end = this.#advance(slot, result);
    if (end !== goesOn) {
      this.#step[slot] = Step.IDLE;
      this.#sink.onBlockComplete(slot, end);
    }
  }

  #advance(slot: number, result: number): number {
    const table = this.#table;
    if (result < 0) {
      return result;
    }
    if (table.op[slot] === BlockOp.READ) {
      return result === table.length[slot] ? 0 : -Errno.EIO;
    }
    if (!this.#isInside(slot)) {
      // The image was cut meanwhile, and what lay beyond its end is not stored.
      return -Errno.EIO;
    }
    const sync = (table.flags[slot] & BlockFlag.FUA) !== 0 && !this.#spec.noFlush;
    if (this.#step[slot] === Step.OPERATION && sync && table.op[slot] !== BlockOp.FLUSH) {
      this.#start(slot, Step.SYNC);
      return goesOn;
    }
    return 0;
  }

  #isInside(slot: number): boolean {
    const table = this.#table;
    return table.offset[slot] + table.length[slot] <= this.#port.shared.imageBytes;
  }

  #start(slot: number, step: number): void {
    const created = this.#library.createCompletion(
      completionArgument(this.#number, slot),
      0,
      this.#outAddress,
    );
    if (created < 0) {
      this.#fail(slot, created);
      return;
    }
    const completion = this.#out[0] + this.#out[1] * two32;
    this.#completion[slot] = completion;
    this.#step[slot] = step;
    const result =
      step === Step.SYNC
        ? this.#library.flush(this.#spec.image, completion)
        : this.#startOperation(slot, completion);
    if (result < 0) {
      this.#library.release(completion);
      this.#fail(slot, result);
    }
  }

  #fail(slot: number, result: number): void {
    this.#step[slot] = Step.IDLE;
    this.#sink.onBlockComplete(slot, result);
  }

  #startOperation(slot: number, completion: number): number {
    const table = this.#table;
    const { image } = this.#spec;
    const offset = table.offset[slot];
    const length = table.length[slot];
    switch (table.op[slot]) {
      case BlockOp.READ:
        return table.segmentCount[slot] === 1
          ? this.#library.read(image, offset, length, table.firstAddress[slot], completion)
          : this.#library.readVector(
              image,
              table.iovecAddress(slot),
              table.segmentCount[slot],
              offset,
              completion,
            );
      case BlockOp.WRITE:
        return table.segmentCount[slot] === 1
          ? this.#library.write(image, offset, length, table.firstAddress[slot], completion)
          : this.#library.writeVector(
              image,
              table.iovecAddress(slot),
              table.segmentCount[slot],
              offset,
              completion,
            );
      case BlockOp.FLUSH:
        return this.#library.flush(image, completion);
      case BlockOp.DISCARD:
        return this.#library.discard(image, offset, length, completion);
      default: {
        const mayUnmap = (table.flags[slot] & BlockFlag.MAY_UNMAP) !== 0 && !this.#spec.ignoreDiscard;
        const zeroFlags = mayUnmap ? 0 : WRITE_ZEROES_FLAG_THICK_PROVISION;
        return this.#library.writeZeroes(image, offset, length, completion, zeroFlags, 0);
      }
    }
  }
}
