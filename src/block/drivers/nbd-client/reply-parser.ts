// Hot file: synchronous, no allocation per request, no throw.
/**
 * What replies say: headers that came into the buffer, the payload that follows one, and what becomes of the request. A
 * server is not trusted: what it says is checked against the request before a byte goes anywhere ("Simple reply
 * message", "Structured reply chunk message"). Where bytes are received to is the reader's business.
 */
import {
  Bytes,
  Command,
  Magic,
  NbdErrno,
  REPLY_FLAG_DONE,
  ReplyType,
  readU16,
  readU32,
  readU64,
} from '../../../base/nbd-protocol.js';
import { Errno } from '../../../native/errno.js';
import { viewBytes } from '../../../native/fd.js';
import { mapAnonymous, unmap } from '../../../native/memory.js';
import { smallChunkBytesMax, takeSmallChunk } from './small-chunk.js';
import { checkStatusChunk, StatusReply, statusHeaderBytes } from './status-reply.js';
import type { WireClients } from './wire-clients.js';
import { fromWireErrno } from './wire-errno.js';
import type { WireRequests } from './wire-requests.js';

export const bufferBytes = 64 << 10;
/** What may be read ahead of a payload that is about to come: the fixed part of a chunk of data. */
export const dataHeaderBytes = Bytes.structuredHeader + Bytes.dataOffset;
/** Where there is no base:allocation. */
const none = -1;

export class ReplyParser {
  /** What the server did wrong; '' for nothing. */
  violation = '';
  /** The server told that it is shutting down: its error is no answer to the request. */
  shuttingDown = false;
  structured = false;
  readonly address = mapAnonymous(bufferBytes);
  readonly buffer: Uint8Array = viewBytes(this.address, bufferBytes);
  // Where in the buffer the bytes are that came and were not looked at.
  start = 0;
  end = 0;
  /** Bytes that are needed to go on. */
  wanted: number = Bytes.simpleReply;
  // The payload that is being received: whose, where it goes on in it, how much is left, and what follows.
  id = 0;
  requests: WireRequests | undefined;
  from = 0;
  left = 0;
  last = false;
  readonly #clients: WireClients;
  /** The extents that are being received; their end is the reply's where `last` says so. */
  readonly #status = new StatusReply();
  #allocationContext = none;
  #active = false;

  constructor(clients: WireClients) {
    this.#clients = clients;
  }

  /** Begins on a new connection. */
  reset(structured: boolean, allocationContext: number | undefined): void {
    this.structured = structured;
    this.#allocationContext = allocationContext ?? none;
    this.#status.reset();
    this.#active = true;
    this.violation = '';
    this.shuttingDown = false;
    this.start = 0;
    this.end = 0;
    this.left = 0;
    this.wanted = Bytes.simpleReply;
    this.requests = undefined;
  }

  /** The connection is gone: whoever is receiving stops. */
  stop(): void {
    this.#active = false;
  }

  /** False: the connection is not to be used any more. */
  get goesOn(): boolean {
    return this.#active && !this.shuttingDown && this.violation === '';
  }

  /** Of the longest header that may be read before what follows it is known. */
  get headerBytes(): number {
    return this.structured ? dataHeaderBytes : Bytes.simpleReply;
  }

  /** The number of base:allocation; undefined: block status can't be asked for. */
  get allocationContext(): number | undefined {
    return this.#allocationContext === none ? undefined : this.#allocationContext;
  }

  get isInMiddle(): boolean {
    return this.left > 0 || this.#status.left > 0 || this.end > this.start;
  }

  close(): void {
    this.#active = false;
    unmap(this.address, bufferBytes);
  }

  /** One step through the buffer. False: it needs more, or it is over. */
  parse(): boolean {
    const available = this.end - this.start;
    if (this.left > 0) {
      const bytes = Math.min(available, this.left);
      if (bytes === 0) {
        return false;
      }
      const from = this.address + this.start;
      this.start += bytes;
      this.requests!.copyPayload(this.id & 0xffff, this.from, bytes, from, true);
      this.onPayload(bytes);
      return true;
    }
    if (this.#status.left > 0) {
      return this.#parseStatus(available);
    }
    if (available < Bytes.simpleReply) {
      return this.#want(Bytes.simpleReply);
    }
    const magic = readU32(this.buffer, this.start);
    if (magic === Magic.simpleReply) {
      return this.#parseSimple();
    }
    if (magic !== Magic.structuredReply || !this.structured) {
      return this.#violate('a reply does not begin with its magic number');
    }
    return this.#parseChunk(available);
  }

  #parseSimple(): boolean {
    const at = this.start;
    const error = readU32(this.buffer, at + 4);
    const id = readU32(this.buffer, at + 12);
    const requests = this.#clients.find(readU32(this.buffer, at + 8), id);
    if (requests === undefined) {
      return this.#violate('a reply has a cookie that no request has');
    }
    this.start += Bytes.simpleReply;
    const slot = id & 0xffff;
    if (error !== 0) {
      return this.#onError(id, error);
    }
    const command = requests.command[slot];
    if (command === Command.BLOCK_STATUS || (command === Command.READ && this.structured)) {
      return this.#violate('what was asked for comes in a simple reply');
    }
    if (command !== Command.READ) {
      return this.#complete(id, 0);
    }
    this.beginPayload(id, requests, 0, requests.length[slot], true);
    return true;
  }

  #parseChunk(available: number): boolean {
    if (available < Bytes.structuredHeader) {
      return this.#want(Bytes.structuredHeader);
    }
    const at = this.start;
    const id = readU32(this.buffer, at + 12);
    const requests = this.#clients.find(readU32(this.buffer, at + 8), id);
    if (requests === undefined) {
      return this.#violate('a chunk has a cookie that no request has');
    }
    const type = readU16(this.buffer, at + 6);
    const length = readU32(this.buffer, at + 16);
    if (type === ReplyType.OFFSET_DATA) {
      return available < dataHeaderBytes
        ? this.#want(dataHeaderBytes)
        : this.#parseData(id, requests, length - Bytes.dataOffset);
    }
    if (type === ReplyType.BLOCK_STATUS) {
      return this.#parseStatusHeader(id, requests, length);
    }
    if (length > smallChunkBytesMax) {
      return this.#violate('a chunk is longer than one of its type can be');
    }
    if (available < Bytes.structuredHeader + length) {
      return this.#want(Bytes.structuredHeader + length);
    }
    this.start += Bytes.structuredHeader + length;
    const violation = takeSmallChunk(this.buffer, at, requests, id & 0xffff);
    if (violation !== '') {
      return this.#violate(violation);
    }
    if (requests.error[id & 0xffff] === -Errno.ESHUTDOWN) {
      this.shuttingDown = true;
      return false;
    }
    return (readU16(this.buffer, at + 4) & REPLY_FLAG_DONE) === 0 || this.#endReply(id, requests);
  }

  /** A chunk of data, whose header is whole in the buffer. */
  #parseData(id: number, requests: WireRequests, length: number): boolean {
    const slot = id & 0xffff;
    const from = readU64(this.buffer, this.start + Bytes.structuredHeader) - requests.offset[slot];
    if (!requests.isMissing(slot, from, length)) {
      return this.#violate('a chunk has data that was not asked for');
    }
    const last = (readU16(this.buffer, this.start + 4) & REPLY_FLAG_DONE) !== 0;
    this.start += dataHeaderBytes;
    this.beginPayload(id, requests, from, length, last);
    return true;
  }

  /** The part of a chunk of extents that is before them. */
  #parseStatusHeader(id: number, requests: WireRequests, length: number): boolean {
    const at = this.start;
    const violation = checkStatusChunk(requests, id & 0xffff, length);
    if (violation !== '') {
      return this.#violate(violation);
    }
    if (this.end - at < statusHeaderBytes) {
      return this.#want(statusHeaderBytes);
    }
    if (readU32(this.buffer, at + Bytes.structuredHeader) !== this.#allocationContext) {
      return this.#violate('a chunk has extents of another context');
    }
    this.#status.begin(requests, id & 0xffff, length);
    this.id = id;
    this.requests = requests;
    this.last = (readU16(this.buffer, at + 4) & REPLY_FLAG_DONE) !== 0;
    this.start += statusHeaderBytes;
    return true;
  }

  #parseStatus(available: number): boolean {
    const status = this.#status;
    const taken = status.take(this.buffer, this.start, available);
    if (taken < 0) {
      return this.#violate('a chunk has an extent without length');
    }
    this.start += taken;
    if (status.left > 0) {
      return this.#want(Math.min(status.left, bufferBytes));
    }
    return !this.last || this.#endReply(this.id, this.requests!);
  }

  #onError(id: number, error: number): boolean {
    if (error === NbdErrno.ESHUTDOWN) {
      this.shuttingDown = true;
      return false;
    }
    return this.#complete(id, fromWireErrno(error));
  }

  /** The next bytes are a payload of `length` bytes, from `from` on in its request's. */
  beginPayload(id: number, requests: WireRequests, from: number, length: number, last: boolean): void {
    this.id = id;
    this.requests = requests;
    this.from = from;
    this.left = length;
    this.last = last;
  }

  /** So many bytes of the payload are where they belong. */
  onPayload(bytes: number): void {
    this.from += bytes;
    this.left -= bytes;
    this.requests!.received[this.id & 0xffff] += bytes;
    if (this.left === 0 && this.last) {
      this.#endReply(this.id, this.requests!);
    }
  }

  #endReply(id: number, requests: WireRequests): boolean {
    const slot = id & 0xffff;
    const error = requests.error[slot];
    const isRead = requests.command[slot] === Command.READ;
    if (error === 0 && isRead && requests.received[slot] !== requests.length[slot]) {
      return this.#violate('the reply to a read ends before all data came');
    }
    if (error === 0 && requests.command[slot] === Command.BLOCK_STATUS && requests.received[slot] === 0) {
      return this.#violate('the reply to a request for the block status ends without it');
    }
    return this.#complete(id, error);
  }

  #complete(id: number, result: number): boolean {
    this.wanted = Bytes.simpleReply;
    this.#clients.complete(id, result);
    return this.#active;
  }

  #want(bytes: number): boolean {
    this.wanted = bytes;
    return false;
  }

  #violate(reason: string): boolean {
    this.violation = reason;
    return false;
  }
}
