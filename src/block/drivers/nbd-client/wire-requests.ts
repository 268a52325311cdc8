// Hot file: synchronous, no allocation after construction, no throw.
/**
 * One engine's requests as they go over the wire, a row of arrays for each slot of its request table. A slot has one
 * wire request at a time: a block request that is too long for the server is several of them, one after the other.
 */
import { Command, Magic } from '../../../base/nbd-protocol.js';
import { viewMemory } from '../../../native/ffi.js';
import { copyMemory, fillZeroes, mapAnonymous, unmap } from '../../../native/memory.js';
import type { IovecMessage } from '../../../native/stream-socket.js';
import type { RequestTable } from '../../request-table.js';

export const WireState = {
  IDLE: 0,
  /** There is no connection to send it on. */
  HELD: 1,
  QUEUED: 2,
  /** The first of its bytes have gone. */
  SENDING: 3,
  SENT: 4,
} as const;

/** Bytes of an encoded header, and of the room that each slot has for one. */
export const requestBytes = 28;
const headerStride = 32;
/** A write of zeroes, for servers without NBD_CMD_WRITE_ZEROES, sends these again and again. */
const zeroBytes = 1 << 20;
const two32 = 0x1_0000_0000;

export class WireRequests {
  readonly capacity: number;
  readonly state: Uint8Array;
  readonly command: Uint8Array;
  readonly flags: Uint8Array;
  /** On the export, bytes. */
  readonly offset: Float64Array;
  readonly length: Float64Array;
  /** Whether the payload of a write is zeroes instead of the slot's segments. */
  readonly fromZeroes: Uint8Array;
  /** How far a reply has come: bytes of the request's range that it has told of, and the error of its chunks. */
  readonly received: Float64Array;
  readonly error: Int32Array;
  readonly errorChunks: Uint8Array;
  /** Tells a reply to this use of the slot from one to another. */
  readonly sequence: Uint32Array;
  readonly #table: RequestTable;
  /** Where the payload begins in the slot's segments. */
  readonly #payloadStart: Float64Array;
  readonly #headersAddress: number;
  readonly #headersBytes: number;
  readonly #headers: DataView;
  #zeroes = 0;

  constructor(table: RequestTable) {
    const { capacity } = table;
    this.#table = table;
    this.capacity = capacity;
    this.state = new Uint8Array(capacity);
    this.command = new Uint8Array(capacity);
    this.flags = new Uint8Array(capacity);
    this.offset = new Float64Array(capacity);
    this.length = new Float64Array(capacity);
    this.fromZeroes = new Uint8Array(capacity);
    this.received = new Float64Array(capacity);
    this.error = new Int32Array(capacity);
    this.errorChunks = new Uint8Array(capacity);
    this.sequence = new Uint32Array(capacity);
    this.#payloadStart = new Float64Array(capacity);
    this.#headersBytes = capacity * headerStride;
    this.#headersAddress = mapAnonymous(this.#headersBytes);
    this.#headers = new DataView(viewMemory(this.#headersAddress, this.#headersBytes));
  }

  /** Describes the slot's next wire request: `length` bytes from `start` of the block request on. */
  set(slot: number, command: number, flags: number, start: number, length: number): void {
    this.command[slot] = command;
    this.flags[slot] = flags;
    this.offset[slot] = this.#table.offset[slot] + start;
    this.length[slot] = length;
    this.#payloadStart[slot] = start;
    this.fromZeroes[slot] = 0;
    this.sequence[slot]++;
    this.restart(slot);
  }

  /** Forgets what came of a reply: the request is sent again, on another connection. */
  restart(slot: number): void {
    this.received[slot] = 0;
    this.error[slot] = 0;
    this.errorChunks[slot] = 0;
  }

  /** Writes the request's header. `id` comes back in the reply's cookie, below the sequence. */
  encode(slot: number, id: number): void {
    const at = slot * headerStride;
    const headers = this.#headers;
    const offset = this.offset[slot];
    headers.setUint32(at, Magic.request);
    headers.setUint16(at + 4, this.flags[slot]);
    headers.setUint16(at + 6, this.command[slot]);
    headers.setUint32(at + 8, this.sequence[slot]);
    headers.setUint32(at + 12, id);
    headers.setUint32(at + 16, Math.floor(offset / two32));
    headers.setUint32(at + 20, offset % two32);
    headers.setUint32(at + 24, this.length[slot]);
  }

  /** Bytes that the request takes on the wire. */
  wireBytes(slot: number): number {
    return this.command[slot] === Command.WRITE ? requestBytes + this.length[slot] : requestBytes;
  }

  /** Adds what is still to be sent, as far as the message has room; `done` bytes have gone. True: all of it. */
  addOutgoing(message: IovecMessage, slot: number, done: number): boolean {
    if (done < requestBytes) {
      message.add(this.#headersAddress + slot * headerStride + done, requestBytes - done);
    }
    if (this.command[slot] !== Command.WRITE) {
      return true;
    }
    const from = Math.max(0, done - requestBytes);
    const left = this.length[slot] - from;
    if (this.fromZeroes[slot] === 0) {
      return this.addPayload(message, slot, from, left);
    }
    if (this.#zeroes === 0) {
      this.#zeroes = mapAnonymous(zeroBytes);
    }
    for (let added = 0; added < left; added += zeroBytes) {
      if (message.isFull) {
        return false;
      }
      message.add(this.#zeroes, Math.min(zeroBytes, left - added));
    }
    return true;
  }

  /** Adds a range of the payload in guest memory, as far as the message has room. True: all of it. */
  addPayload(message: IovecMessage, slot: number, from: number, length: number): boolean {
    const table = this.#table;
    const count = table.segmentCount[slot];
    let skip = this.#payloadStart[slot] + from;
    let left = length;
    for (let n = 0; n < count && left > 0; n++) {
      const segment = table.segmentLength(slot, n);
      if (skip >= segment) {
        skip -= segment;
        continue;
      }
      if (message.isFull) {
        return false;
      }
      const bytes = Math.min(segment - skip, left);
      message.add(table.segmentAddress(slot, n) + skip, bytes);
      left -= bytes;
      skip = 0;
    }
    return true;
  }

  /** Whether a range is of a read's data, and not more than is missing of it: so chunks come to an end. */
  isMissing(slot: number, from: number, length: number): boolean {
    return (
      this.command[slot] === Command.READ &&
      length > 0 &&
      from >= 0 &&
      from + length <= this.length[slot] &&
      length <= this.length[slot] - this.received[slot]
    );
  }

  /** Bytes of memory that the slot's answer may take. */
  roomBytes(slot: number): number {
    return this.#table.segmentCount[slot] === 0 ? 0 : this.#table.segmentLength(slot, 0);
  }

  /** Fills a range of the payload in guest memory with zeroes. */
  zeroPayload(slot: number, from: number, length: number): void {
    this.#eachPart(slot, from, length, 0, false);
  }

  /** Copies between a range of the payload in guest memory and a buffer. */
  copyPayload(slot: number, from: number, length: number, buffer: number, toGuest: boolean): void {
    this.#eachPart(slot, from, length, buffer, toGuest);
  }

  close(): void {
    unmap(this.#headersAddress, this.#headersBytes);
    if (this.#zeroes !== 0) {
      unmap(this.#zeroes, zeroBytes);
    }
  }

  /** `buffer` 0: zeroes. */
  #eachPart(slot: number, from: number, length: number, buffer: number, toGuest: boolean): void {
    const table = this.#table;
    const count = table.segmentCount[slot];
    let skip = this.#payloadStart[slot] + from;
    let done = 0;
    for (let n = 0; n < count && done < length; n++) {
      const segment = table.segmentLength(slot, n);
      if (skip >= segment) {
        skip -= segment;
        continue;
      }
      const guest = table.segmentAddress(slot, n) + skip;
      const bytes = Math.min(segment - skip, length - done);
      if (buffer === 0) {
        fillZeroes(guest, bytes);
      } else if (toGuest) {
        copyMemory(guest, buffer + done, bytes);
      } else {
        copyMemory(buffer + done, guest, bytes);
      }
      done += bytes;
      skip = 0;
    }
  }
}
