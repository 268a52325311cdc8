// Hot: synchronous but for the export's own promises.
/**
 * The transmission phase of one client: requests out of its bytes, to the export, and replies as they complete, in
 * any order. A request that would be too much waits, and with it everything behind it in the socket.
 */
import { errorMessage } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { Bytes, Command, NbdErrno } from '../base/nbd-protocol.js';
import { callExport, callFlush, callSubmit, Slot, type SlotOwner } from './export-calls.js';
import { extentsForReply } from './extents.js';
import { toWireErrno, wireErrnoName } from './nbd-errno.js';
import type { NbdExport, NbdExtent, NbdPreparedWrite, NbdReadResult } from './nbd-export.js';
import { type NbdClientLimits, nbdLimits } from './nbd-limits.js';
import { ReplyEncoder, readResultLength } from './reply-encoder.js';
import type { ReplyQueue } from './reply-queue.js';
import { type Refusal, RequestCheck, refusal, type SessionTerms } from './request.js';

export interface TransmissionOptions {
  readonly terms: SessionTerms;
  readonly queue: ReplyQueue;
  readonly limits: NbdClientLimits;
  readonly logger: Logger;
  /** A request went on, outside of consume(): there may be replies to send, and room for more requests. */
  readonly onProgress: () => void;
  /** The client has said its last, or broke the protocol, which `fault` tells. Requests under way go on. */
  readonly onFinished: (fault?: string) => void;
}

/** From so many bytes on, a payload's rest is received where it belongs instead of being copied there. */
const receivedInPlaceMin = 16 << 10;

/** A write's payload that is coming. */
interface Receiving {
  readonly slot: Slot;
  readonly prepared: NbdPreparedWrite;
  filled: number;
}

export class Transmission implements SlotOwner {
  readonly #options: TransmissionOptions;
  readonly #target: NbdExport;
  readonly #queue: ReplyQueue;
  readonly #encoder: ReplyEncoder;
  readonly #check: RequestCheck;
  readonly #free: Slot[] = [];

  /** A header of which only a part has come. */
  readonly #header = new Uint8Array(Bytes.request);
  #headerFilled = 0;
  /** A request that waits for room. */
  #next: Slot | undefined;
  /** A write that waits for memory. */
  #preparing: Slot | undefined;
  /** A write whose payload is coming. */
  #receiving: Receiving | undefined;
  #expectsPayload = false;
  /** Bytes of a refused write's payload that are still to come. */
  #skip = 0;

  #inFlight = 0;
  #inFlightBytes = 0;
  #consuming = false;
  #blocked = false;
  #refusesAll = false;
  #finished = false;
  #abandoned = false;

  constructor(options: TransmissionOptions) {
    this.#options = options;
    this.#target = options.terms.served.target;
    this.#queue = options.queue;
    this.#encoder = new ReplyEncoder(options.queue, options.terms.structuredReplies);
    this.#check = new RequestCheck(options.terms);
  }

  /** Requests that the export has, and a write whose payload is coming. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /** The client began a request and owes the rest of it. */
  get isMidRequest(): boolean {
    return this.#headerFilled > 0 || this.#skip > 0 || this.#receiving !== undefined;
  }

  /** Bytes are left where they are until requests have completed or replies are read. */
  get isBlocked(): boolean {
    return this.#blocked;
  }

  /** Where the client's next bytes belong, when they are the rest of a long payload. */
  get payloadPlace(): Uint8Array | undefined {
    const receiving = this.#receiving;
    return receiving !== undefined && receiving.slot.length - receiving.filled >= receivedInPlaceMin
      ? receiving.prepared.buffer.subarray(receiving.filled)
      : undefined;
  }

  /** Long payloads are coming: what is read before one of them is to be little, for it is copied. */
  get expectsPayload(): boolean {
    return this.#expectsPayload;
  }

  /** Bytes have come to payloadPlace. */
  onPayload(count: number): void {
    // A payload that was given up meanwhile has no use for its bytes.
    if (this.#receiving !== undefined) {
      this.#advancePayload(this.#receiving, count);
    }
  }

  /** Takes bytes of the client from `at` on, as far as there is room for requests. Returns where it stopped. */
  consume(chunk: Uint8Array, at: number): number {
    this.#consuming = true;
    this.#blocked = false;
    while (!this.#finished) {
      if (this.#preparing !== undefined || (this.#next !== undefined && !this.#hasRoom(this.#next))) {
        this.#blocked = true;
        break;
      }
      if (this.#next !== undefined) {
        this.#start(this.#next);
      } else if (at === chunk.length) {
        break;
      } else if (this.#receiving !== undefined) {
        at = this.#takePayload(chunk, at);
      } else if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, chunk.length - at);
        this.#skip -= skipped;
        at += skipped;
      } else if (this.#queue.pendingBytes > nbdLimits.unreadReplyBytesMax) {
        this.#blocked = true;
        break;
      } else {
        at = this.#takeHeader(chunk, at);
      }
    }
    this.#consuming = false;
    return this.#finished ? chunk.length : at;
  }

  /** From now on every request is answered with ESHUTDOWN. */
  refuseAll(): void {
    this.#refusesAll = true;
  }

  /** Nothing comes from the client any more: a payload that is not complete never will be. */
  endInput(): void {
    this.#finished = true;
    this.#next = undefined;
    this.#headerFilled = 0;
    this.#skip = 0;
    const receiving = this.#receiving;
    if (receiving !== undefined) {
      this.#receiving = undefined;
      receiving.prepared.cancel();
      this.#release(receiving.slot);
    }
  }

  /** The client is gone: what completes is given back, unsent. */
  abandon(): void {
    this.#abandoned = true;
    this.endInput();
  }

  #finish(fault?: string): void {
    this.endInput();
    this.#options.onFinished(fault);
  }

  #takeHeader(chunk: Uint8Array, at: number): number {
    if (this.#headerFilled === 0 && chunk.length - at >= Bytes.request) {
      this.#decode(chunk, at);
      return at + Bytes.request;
    }
    const taken = Math.min(Bytes.request - this.#headerFilled, chunk.length - at);
    this.#header.set(chunk.subarray(at, at + taken), this.#headerFilled);
    this.#headerFilled += taken;
    if (this.#headerFilled === Bytes.request) {
      this.#headerFilled = 0;
      this.#decode(this.#header, 0);
    }
    return at + taken;
  }

  #decode(bytes: Uint8Array, at: number): void {
    const slot = this.#free.pop() ?? new Slot(this);
    if (!slot.decode(bytes, at)) {
      this.#finish('a request without its magic number');
      return;
    }
    if (slot.command === Command.DISC) {
      this.#finish();
      return;
    }
    const refused = this.#refusesAll
      ? refusal(slot, NbdErrno.ESHUTDOWN, 'the server is shutting down')
      : this.#check.refuse(slot);
    if (refused === undefined) {
      this.#expectsPayload = slot.command === Command.WRITE && slot.length >= 2 * receivedInPlaceMin;
      this.#next = slot;
      return;
    }
    this.#refuse(slot, refused);
    this.#free.push(slot);
  }

  #refuse(slot: Slot, refused: Refusal): void {
    this.#options.logger.debug({ errno: wireErrnoName(refused.errno) }, refused.text);
    this.#encoder.failed(slot, refused);
    if (slot.command !== Command.WRITE) {
      return;
    }
    if (slot.length > nbdLimits.payloadBytesMax) {
      // "Size constraints": passing over that much would be work for nothing.
      this.#finish(refused.text);
    } else {
      this.#skip = slot.length;
    }
  }

  /** One request always fits, however long, so that nothing waits for ever. */
  #hasRoom(slot: Slot): boolean {
    const { requestsMax, requestBytesMax } = this.#options.limits;
    const held = this.#inFlightBytes + this.#queue.pendingBytes;
    return this.#inFlight < requestsMax && (held === 0 || held + slot.payloadLength <= requestBytesMax);
  }

  #start(slot: Slot): void {
    this.#next = undefined;
    this.#inFlight += 1;
    this.#inFlightBytes += slot.payloadLength;
    if (slot.length === 0 && slot.command !== Command.FLUSH) {
      // Unspecified by the protocol, and easy to get wrong: the export never sees it.
      this.#encoder.done(slot);
      this.#release(slot);
      return;
    }
    if (slot.command === Command.WRITE) {
      this.#preparing = slot;
    }
    callExport(this.#target, slot);
  }

  #takePayload(chunk: Uint8Array, at: number): number {
    const receiving = this.#receiving!;
    const { slot, prepared } = receiving;
    const taken = Math.min(slot.length - receiving.filled, chunk.length - at);
    prepared.buffer.set(chunk.subarray(at, at + taken), receiving.filled);
    this.#advancePayload(receiving, taken);
    return at + taken;
  }

  #advancePayload(receiving: Receiving, count: number): void {
    const { slot, prepared } = receiving;
    receiving.filled += count;
    if (receiving.filled === slot.length) {
      this.#receiving = undefined;
      callSubmit(prepared, slot);
    }
  }

  // SlotOwner

  onPrepared(slot: Slot, prepared: NbdPreparedWrite): void {
    this.#preparing = undefined;
    if (this.#finished) {
      prepared.cancel();
      this.#release(slot);
    } else if (prepared.buffer.length !== slot.length) {
      prepared.cancel();
      this.#skip = slot.length;
      this.#blame(slot, `prepareWrite gave ${prepared.buffer.length} bytes for ${slot.length}`);
    } else {
      this.#receiving = { slot, prepared, filled: 0 };
      this.#progress();
    }
  }

  onRead(slot: Slot, result: NbdReadResult): void {
    const length = readResultLength(result);
    if (this.#abandoned) {
      result.release();
      this.#release(slot);
    } else if (length !== slot.length) {
      result.release();
      this.#blame(slot, `read gave ${length} bytes for ${slot.length}`);
    } else {
      this.#encoder.read(slot, result);
      this.#release(slot);
    }
  }

  onExtents(slot: Slot, extents: readonly NbdExtent[]): void {
    if (!this.#abandoned) {
      this.#encoder.blockStatus(slot, extentsForReply(extents, slot));
    }
    this.#release(slot);
  }

  onDone(slot: Slot): void {
    if (slot.mustFlush && !this.#abandoned) {
      slot.mustFlush = false;
      callFlush(this.#target, slot);
      return;
    }
    if (!this.#abandoned) {
      this.#encoder.done(slot);
    }
    this.#release(slot);
  }

  onFailed(slot: Slot, error: unknown): void {
    if (this.#preparing === slot) {
      this.#preparing = undefined;
      this.#skip = this.#finished ? 0 : slot.length;
    }
    if (!this.#abandoned) {
      const errno = toWireErrno(error, slot.command, slot.flags);
      const failed = refusal(slot, errno, wireErrnoName(errno));
      this.#options.logger.debug(`${failed.text} (${errorMessage(error)})`);
      this.#encoder.failed(slot, failed);
    }
    this.#release(slot);
  }

  /** The export broke its contract: the client gets an error, the log gets the reason. */
  #blame(slot: Slot, what: string): void {
    const failed = refusal(slot, NbdErrno.EIO, 'the export failed');
    this.#options.logger.error(`${failed.text}: ${what}`);
    this.#encoder.failed(slot, failed);
    this.#release(slot);
  }

  #release(slot: Slot): void {
    this.#inFlight -= 1;
    this.#inFlightBytes -= slot.payloadLength;
    this.#free.push(slot);
    this.#progress();
  }

  #progress(): void {
    if (!this.#consuming) {
      this.#options.onProgress();
    }
  }
}
