// Hot file: synchronous, no allocation per request, no throw.
/** Receives replies: headers into the parser's buffer, payload straight into guest memory. */
import {
  Bytes,
  Magic,
  REPLY_FLAG_DONE,
  ReplyType,
  readU16,
  readU32,
  readU64,
} from '../../../base/nbd-protocol.js';
import { Errno } from '../../../native/errno.js';
import { IovecMessage } from '../../../native/stream-socket.js';
import { bufferBytes, dataHeaderBytes, ReplyParser } from './reply-parser.js';
import type { WireClients } from './wire-clients.js';
import { type WireRequests, WireState } from './wire-requests.js';

/** How much of a read's payload is received on the guess that it follows at once. */
const guessBytesMax = bufferBytes - 2 * dataHeaderBytes;
/** Calls in one go, for the sake of the other queues of the thread. */
const callsMax = 256;

/** What `receive` returns beside a negative errno. */
export const ReceiveResult = {
  /** Nothing more is there now. */
  DRAINED: 0,
  /** More may be there. */
  MORE: 1,
  /** The server has closed the connection. */
  CLOSED: 2,
  /** The server broke the protocol: the parser's `violation`. */
  VIOLATED: 3,
  /** A reply's taker ended the connection, or the server is about to. */
  STOPPED: 4,
} as const;

export class ReplyReader {
  readonly parser: ReplyParser;
  readonly #clients: WireClients;
  readonly #message = new IovecMessage();

  constructor(clients: WireClients) {
    this.#clients = clients;
    this.parser = new ReplyParser(clients);
  }

  close(): void {
    this.#message.close();
    this.parser.close();
  }

  /** Receives what is there, a bounded part of it. Returns a ReceiveResult or a negative errno. */
  receive(fd: number): number {
    const { parser } = this;
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
      while (parser.goesOn && parser.parse()) {}
      if (!parser.goesOn) {
        return parser.violation === '' ? ReceiveResult.STOPPED : ReceiveResult.VIOLATED;
      }
      // Where nothing is asked for, nothing comes, or the ring tells of it.
      if (received < asked || this.#clients.onWire === 0) {
        return ReceiveResult.DRAINED;
      }
    }
    return ReceiveResult.MORE;
  }

  /** Describes where the next bytes go. True: a payload follows the header on a guess. */
  #prepare(): boolean {
    const message = this.#message;
    const { parser } = this;
    message.clear();
    if (parser.left > 0) {
      const whole = parser.requests!.addPayload(message, parser.id & 0xffff, parser.from, parser.left);
      if (whole && !message.isFull) {
        // A reply to another read may follow, and its payload is not to land here.
        const others = this.#clients.reads > 1 || !parser.last;
        parser.start = 0;
        parser.end = 0;
        message.add(parser.address, others ? parser.headerBytes : bufferBytes);
      }
      return false;
    }
    this.#compact();
    const available = parser.end - parser.start;
    if (this.#clients.reads === 0) {
      message.add(parser.address + parser.end, bufferBytes - parser.end);
      return false;
    }
    const header = Math.max(parser.wanted, parser.headerBytes);
    message.add(parser.address + parser.end, header - available);
    if (available > 0 || !this.#isOnlyRead()) {
      return false;
    }
    const slot = this.#clients.newest & 0xffff;
    const requests = this.#clients.requests(this.#clients.newest);
    requests.addPayload(message, slot, 0, Math.min(requests.length[slot], guessBytesMax));
    return true;
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
    const { parser } = this;
    if (parser.start === parser.end) {
      parser.start = 0;
      parser.end = 0;
    } else if (parser.start > 0) {
      parser.buffer.copyWithin(0, parser.start, parser.end);
      parser.end -= parser.start;
      parser.start = 0;
    }
  }

  /** Bytes came as `#prepare` described: first the rest of a payload, then what is read ahead. */
  #take(received: number): void {
    const { parser } = this;
    const payload = Math.min(received, parser.left);
    parser.end += received - payload;
    if (payload > 0) {
      parser.onPayload(payload);
    }
  }

  /** Bytes came on a guess: a header, and then payload if the guess is right. */
  #takeGuess(received: number): void {
    const { parser } = this;
    const header = parser.headerBytes;
    parser.end += Math.min(received, header);
    const landed = received - header;
    if (landed <= 0) {
      return;
    }
    const { newest } = this.#clients;
    const requests = this.#clients.requests(newest);
    const slot = newest & 0xffff;
    if (this.#isWholeRead(requests, slot)) {
      const last = !parser.structured || (readU16(parser.buffer, 4) & REPLY_FLAG_DONE) !== 0;
      parser.start = 0;
      parser.end = 0;
      parser.beginPayload(newest, requests, 0, requests.length[slot], last);
      parser.onPayload(landed);
      return;
    }
    // An error, or the data comes in several pieces: what landed is brought to where the parser finds it.
    requests.copyPayload(slot, 0, landed, parser.address + parser.end, false);
    parser.end += landed;
  }

  /** Whether the buffer has the header of a reply with all the data of this read. */
  #isWholeRead(requests: WireRequests, slot: number): boolean {
    const { buffer, structured } = this.parser;
    const mine =
      readU32(buffer, 8) === requests.sequence[slot] && readU32(buffer, 12) === this.#clients.newest;
    if (!structured) {
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
}
