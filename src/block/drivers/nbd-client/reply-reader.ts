// Hot file: synchronous, no allocation per request, no throw.
/**
 * Receives replies: headers into a small buffer, payload straight into guest memory. A server is not trusted: what
 * it says is checked against the request before a byte goes anywhere, and what breaks the protocol ends the
 * connection ("Simple reply message", "Structured reply chunk message").
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
import { IovecMessage } from '../../../native/stream-socket.js';
import { smallChunkBytesMax, takeSmallChunk } from './small-chunk.js';
import { checkStatusChunk, StatusReply, statusHeaderBytes } from './status-reply.js';
import type { WireClients } from './wire-clients.js';
import { fromWireErrno } from './wire-errno.js';
import { type WireRequests, WireState } from './wire-requests.js';

const bufferBytes = 64 << 10;
/** What may be read ahead of a payload that is about to come: the fixed part of a chunk of data. */
const dataHeaderBytes = Bytes.structuredHeader + Bytes.dataOffset;
/** How much of a read's payload is received on the guess that it follows at once. */
const guessBytesMax = bufferBytes - 2 * dataHeaderBytes;
/** Calls in one go, for the sake of the other queues of the thread. */
const callsMax = 256;

/** Where there is no base:allocation. */
const none = -1;

/** What `receive` returns beside a negative errno. */
export const ReceiveResult = {
  /** Nothing more is there now. */
  DRAINED: 0,
  /** More may be there. */
  MORE: 1,
  /** The server has closed the connection. */
  CLOSED: 2,
  /** The server broke the protocol: see `violation`. */
  VIOLATED: 3,
  /** A reply's taker ended the connection, or the server is about to. */
  STOPPED: 4,
} as const;

export class ReplyReader {
  violation = '';
  /** The server told that it is shutting down: its error is no answer to the request. */
  shuttingDown = false;
  readonly #clients: WireClients;
  readonly #message = new IovecMessage();
  readonly #address = mapAnonymous(bufferBytes);
  readonly #buffer: Uint8Array = viewBytes(this.#address, bufferBytes);
  #start = 0;
  #end = 0;
  /** Bytes that the parser needs to go on. */
  #wanted: number = Bytes.simpleReply;
  #structured = false;
  #active = false;
  // The payload that is being received: whose, where it goes on in it, how much is left, and what follows.
  #id = 0;
  #requests: WireRequests | undefined;
  #from = 0;
  #left = 0;
  #last = false;
  /** The extents that are being received; their end is the reply's where `#last` says so. */
  readonly #status = new StatusReply();
  #allocationContext = none;

  constructor(clients: WireClients) {
    this.#clients = clients;
  }

  /** Begins on a new connection. */
  reset(structured: boolean, allocationContext: number | undefined): void {
    this.#structured = structured;
    this.#allocationContext = allocationContext ?? none;
    this.#status.reset();
    this.#active = true;
    this.violation = '';
    this.shuttingDown = false;
    this.#start = 0;
    this.#end = 0;
    this.#left = 0;
    this.#wanted = Bytes.simpleReply;
    this.#requests = undefined;
  }

  /** The connection is gone: whoever is receiving stops. */
  stop(): void {
    this.#active = false;
  }

  get structured(): boolean {
    return this.#structured;
  }

  /** The number of base:allocation; undefined: block status can't be asked for. */
  get allocationContext(): number | undefined {
    return this.#allocationContext === none ? undefined : this.#allocationContext;
  }

  get isInMiddle(): boolean {
    return this.#left > 0 || this.#status.left > 0 || this.#end > this.#start;
  }

  close(): void {
    this.#active = false;
    this.#message.close();
    unmap(this.#address, bufferBytes);
  }

  /** Receives what is there, a bounded part of it. Returns a ReceiveResult or a negative errno. */
  receive(fd: number): number {
    for (let calls = 0; calls < callsMax; calls++) {
      const guess = this.#prepare();
      const asked = this.#message.bytes;
      const received = this.#message.receive(fd);
      if (received <= 0) {
        if (received === -Errno.EAGAIN) {
          return ReceiveResult.DRAINED;
        }
        return received === 0 ? ReceiveResult.CLOSED : received;
      }
      if (guess) {
        this.#takeGuess(received);
      } else {
        this.#take(received);
      }
      while (this.#active && !this.shuttingDown && this.violation === '' && this.#parse()) {}
      if (this.violation !== '') {
        return ReceiveResult.VIOLATED;
      }
      if (!this.#active || this.shuttingDown) {
        return ReceiveResult.STOPPED;
      }
      if (received < asked) {
        return ReceiveResult.DRAINED;
      }
    }
    return ReceiveResult.MORE;
  }

  /** Describes where the next bytes go. True: a payload follows the header on a guess. */
  #prepare(): boolean {
    const message = this.#message;
    message.clear();
    if (this.#left > 0) {
      const whole = this.#requests!.addPayload(message, this.#id & 0xffff, this.#from, this.#left);
      if (whole && !message.isFull) {
        // A reply to another read may follow, and its payload is not to land here.
        const others = this.#clients.reads > 1 || !this.#last;
        this.#start = 0;
        this.#end = 0;
        message.add(this.#address, others ? this.#headerBytes : bufferBytes);
      }
      return false;
    }
    this.#compact();
    const available = this.#end - this.#start;
    if (this.#clients.reads === 0) {
      message.add(this.#address + this.#end, bufferBytes - this.#end);
      return false;
    }
    const header = Math.max(this.#wanted, this.#headerBytes);
    message.add(this.#address + this.#end, header - available);
    if (available > 0 || !this.#isOnlyRead()) {
      return false;
    }
    const slot = this.#clients.newest & 0xffff;
    const requests = this.#clients.requests(this.#clients.newest);
    requests.addPayload(message, slot, 0, Math.min(requests.length[slot], guessBytesMax));
    return true;
  }

  get #headerBytes(): number {
    return this.#structured ? dataHeaderBytes : Bytes.simpleReply;
  }

  /**
   * Whether one request is on the wire, and it is a read: then the next reply can only be its. Nothing of it has come
   * yet, or what lands on a wrong guess would destroy that.
   */
  #isOnlyRead(): boolean {
    const { newest, onWire, reads } = this.#clients;
    if (onWire !== 1 || reads !== 1) {
      return false;
    }
    const requests = this.#clients.requests(newest);
    const slot = newest & 0xffff;
    return requests.state[slot] === WireState.SENT && requests.received[slot] === 0;
  }

  #compact(): void {
    if (this.#start === this.#end) {
      this.#start = 0;
      this.#end = 0;
    } else if (this.#start > 0) {
      this.#buffer.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
  }

  /** Bytes came as `#prepare` described: first the rest of a payload, then what is read ahead. */
  #take(received: number): void {
    const payload = Math.min(received, this.#left);
    this.#end += received - payload;
    if (payload > 0) {
      this.#onPayload(payload);
    }
  }

  /** Bytes came on a guess: a header, and then payload if the guess is right. */
  #takeGuess(received: number): void {
    const header = this.#headerBytes;
    this.#end += Math.min(received, header);
    const landed = received - header;
    if (landed <= 0) {
      return;
    }
    const { newest } = this.#clients;
    const requests = this.#clients.requests(newest);
    const slot = newest & 0xffff;
    if (this.#isWholeRead(requests, slot)) {
      const last = !this.#structured || (readU16(this.#buffer, 4) & REPLY_FLAG_DONE) !== 0;
      this.#start = 0;
      this.#end = 0;
      this.#beginPayload(newest, requests, 0, requests.length[slot], last);
      this.#onPayload(landed);
      return;
    }
    // An error, or the data comes in several pieces: what landed is brought to where the parser finds it.
    requests.copyPayload(slot, 0, landed, this.#address + this.#end, false);
    this.#end += landed;
  }

  /** Whether the buffer has the header of a reply with all the data of this read. */
  #isWholeRead(requests: WireRequests, slot: number): boolean {
    const buffer = this.#buffer;
    const mine =
      readU32(buffer, 8) === requests.sequence[slot] && readU32(buffer, 12) === this.#clients.newest;
    if (!this.#structured) {
      return mine && readU32(buffer, 0) === Magic.simpleReply && readU32(buffer, 4) === 0;
    }
    return (
      mine &&
      readU32(buffer, 0) === Magic.structuredReply &&
      readU16(buffer, 6) === ReplyType.OFFSET_DATA &&
      readU32(buffer, 16) === Bytes.dataOffset + requests.length[slot] &&
      readU64(buffer, 20) === requests.offset[slot]
    );
  }

  /** One step through the buffer. False: it needs more, or it is over. */
  #parse(): boolean {
    const available = this.#end - this.#start;
    if (this.#left > 0) {
      const bytes = Math.min(available, this.#left);
      if (bytes === 0) {
        return false;
      }
      const from = this.#address + this.#start;
      this.#start += bytes;
      this.#requests!.copyPayload(this.#id & 0xffff, this.#from, bytes, from, true);
      this.#onPayload(bytes);
      return true;
    }
    if (this.#status.left > 0) {
      return this.#parseStatus(available);
    }
    if (available < Bytes.simpleReply) {
      return this.#want(Bytes.simpleReply);
    }
    const magic = readU32(this.#buffer, this.#start);
    if (magic === Magic.simpleReply) {
      return this.#parseSimple();
    }
    if (magic !== Magic.structuredReply || !this.#structured) {
      return this.#violate('a reply does not begin with its magic number');
    }
    return this.#parseChunk(available);
  }

  #parseSimple(): boolean {
    const at = this.#start;
    const error = readU32(this.#buffer, at + 4);
    const id = readU32(this.#buffer, at + 12);
    const requests = this.#clients.find(readU32(this.#buffer, at + 8), id);
    if (requests === undefined) {
      return this.#violate('a reply has a cookie that no request has');
    }
    this.#start += Bytes.simpleReply;
    const slot = id & 0xffff;
    if (error !== 0) {
      return this.#onError(id, error);
    }
    const command = requests.command[slot];
    if (command === Command.BLOCK_STATUS || (command === Command.READ && this.#structured)) {
      return this.#violate('what was asked for comes in a simple reply');
    }
    if (command !== Command.READ) {
      return this.#complete(id, 0);
    }
    this.#beginPayload(id, requests, 0, requests.length[slot], true);
    return true;
  }

  #parseChunk(available: number): boolean {
    if (available < Bytes.structuredHeader) {
      return this.#want(Bytes.structuredHeader);
    }
    const at = this.#start;
    const id = readU32(this.#buffer, at + 12);
    const requests = this.#clients.find(readU32(this.#buffer, at + 8), id);
    if (requests === undefined) {
      return this.#violate('a chunk has a cookie that no request has');
    }
    const type = readU16(this.#buffer, at + 6);
    const length = readU32(this.#buffer, at + 16);
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
    this.#start += Bytes.structuredHeader + length;
    const violation = takeSmallChunk(this.#buffer, at, requests, id & 0xffff);
    if (violation !== '') {
      return this.#violate(violation);
    }
    if (requests.error[id & 0xffff] === -Errno.ESHUTDOWN) {
      this.shuttingDown = true;
      return false;
    }
    return (readU16(this.#buffer, at + 4) & REPLY_FLAG_DONE) === 0 || this.#endReply(id, requests);
  }

  /** A chunk of data, whose header is whole in the buffer. */
  #parseData(id: number, requests: WireRequests, length: number): boolean {
    const slot = id & 0xffff;
    const from = readU64(this.#buffer, this.#start + Bytes.structuredHeader) - requests.offset[slot];
    if (!requests.isMissing(slot, from, length)) {
      return this.#violate('a chunk has data that was not asked for');
    }
    const last = (readU16(this.#buffer, this.#start + 4) & REPLY_FLAG_DONE) !== 0;
    this.#start += dataHeaderBytes;
    this.#beginPayload(id, requests, from, length, last);
    return true;
  }

  /** The part of a chunk of extents that is before them. */
  #parseStatusHeader(id: number, requests: WireRequests, length: number): boolean {
    const at = this.#start;
    const violation = checkStatusChunk(requests, id & 0xffff, length);
    if (violation !== '') {
      return this.#violate(violation);
    }
    if (this.#end - at < statusHeaderBytes) {
      return this.#want(statusHeaderBytes);
    }
    if (readU32(this.#buffer, at + Bytes.structuredHeader) !== this.#allocationContext) {
      return this.#violate('a chunk has extents of another context');
    }
    this.#status.begin(requests, id & 0xffff, length);
    this.#id = id;
    this.#requests = requests;
    this.#last = (readU16(this.#buffer, at + 4) & REPLY_FLAG_DONE) !== 0;
    this.#start += statusHeaderBytes;
    return true;
  }

  #parseStatus(available: number): boolean {
    const status = this.#status;
    const taken = status.take(this.#buffer, this.#start, available);
    if (taken < 0) {
      return this.#violate('a chunk has an extent without length');
    }
    this.#start += taken;
    if (status.left > 0) {
      return this.#want(Math.min(status.left, bufferBytes));
    }
    return !this.#last || this.#endReply(this.#id, this.#requests!);
  }

  #onError(id: number, error: number): boolean {
    if (error === NbdErrno.ESHUTDOWN) {
      this.shuttingDown = true;
      return false;
    }
    return this.#complete(id, fromWireErrno(error));
  }

  #beginPayload(id: number, requests: WireRequests, from: number, length: number, last: boolean): void {
    this.#id = id;
    this.#requests = requests;
    this.#from = from;
    this.#left = length;
    this.#last = last;
  }

  #onPayload(bytes: number): void {
    this.#from += bytes;
    this.#left -= bytes;
    this.#requests!.received[this.#id & 0xffff] += bytes;
    if (this.#left === 0 && this.#last) {
      this.#endReply(this.#id, this.#requests!);
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
    this.#wanted = Bytes.simpleReply;
    this.#clients.complete(id, result);
    return this.#active;
  }

  #want(bytes: number): boolean {
    this.#wanted = bytes;
    return false;
  }

  #violate(reason: string): boolean {
    this.violation = reason;
    return false;
  }
}
