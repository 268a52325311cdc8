/**
 * The handshake of one client, fixed newstyle: options until it chooses an export. Options are answered one by one;
 * a client that does not read the answers is not listened to.
 */

import {
  ALLOCATION_CONTEXT,
  ALLOCATION_CONTEXT_ID,
  Bytes,
  HandshakeFlag,
  Info,
  Magic,
  Option,
  OptionReply,
  readU32,
  writeU16,
  writeU32,
  writeU64,
} from '../base/nbd-protocol.js';
import { nbdLimits } from './nbd-limits.js';
import { decodeExportQuery, decodeMetaContextQuery, decodeString } from './option-decoder.js';
import { writeGreeting, writeOptionReply } from './option-encoder.js';
import type { ReplyQueue } from './reply-queue.js';
import type { SessionTerms } from './request.js';
import { type ServedExport, transmissionFlags } from './served-export.js';

export interface HandshakeOptions {
  readonly queue: ReplyQueue;
  /** What the client said to the greeting, when that was before TLS began. */
  readonly securedFlags?: number | undefined;
  /** What is served now, by name. */
  readonly exports: ReadonlyMap<string, ServedExport>;
  readonly onChosen: (terms: SessionTerms) => void;
  /** The client gave up, or broke the protocol, which `fault` tells. */
  readonly onFinished: (fault?: string) => void;
}

/** Which fixed part of the stream comes next. */
type Expected = 'flags' | 'header' | 'data';

export class Handshake {
  readonly #options: HandshakeOptions;
  readonly #queue: ReplyQueue;
  #expected: Expected = 'flags';
  /** Collects what is expected, `#wanted` bytes of it. */
  #bytes = new Uint8Array(Bytes.optionHeader);
  #filled = 0;
  #wanted: number = Bytes.clientFlags;
  /** Bytes of an option that is too long, still to come. */
  #skip = 0;
  #option = 0;
  #optionCount = 0;
  #noZeroes = false;
  #structuredReplies = false;
  /** The export for which base:allocation was selected last. */
  #contextExport: string | undefined;
  #finished = false;
  #blocked = false;

  constructor(options: HandshakeOptions) {
    this.#options = options;
    this.#queue = options.queue;
  }

  get isBlocked(): boolean {
    return this.#blocked;
  }

  /** "Newstyle negotiation": the server speaks first, unless it did before TLS began. */
  greet(): void {
    const { securedFlags } = this.#options;
    if (securedFlags !== undefined) {
      this.#onFlags(securedFlags);
      return;
    }
    const at = this.#queue.reserve(Bytes.greeting);
    writeGreeting(this.#queue.slab, at);
  }

  /** Takes bytes from `at` on, up to the end of the handshake. Returns where it stopped. */
  consume(chunk: Uint8Array, at: number): number {
    this.#blocked = false;
    while (at < chunk.length && !this.#finished) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, chunk.length - at);
        this.#skip -= skipped;
        at += skipped;
        continue;
      }
      if (this.#queue.pendingBytes > nbdLimits.optionReplyBytesMax) {
        this.#blocked = true;
        break;
      }
      const taken = Math.min(this.#wanted - this.#filled, chunk.length - at);
      this.#bytes.set(chunk.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled === this.#wanted) {
        this.#filled = 0;
        this.#onComplete();
      }
    }
    return at;
  }

  #onComplete(): void {
    switch (this.#expected) {
      case 'flags':
        this.#onFlags(readU32(this.#bytes, 0));
        break;
      case 'header':
        this.#onHeader(this.#bytes);
        break;
      case 'data':
        this.#onOption(this.#bytes);
        break;
    }
  }

  #onFlags(flags: number): void {
    // "Client flags": a flag that nobody offered ends the connection.
    if ((flags & ~(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)) !== 0) {
      this.#finish(`unknown client flags 0x${flags.toString(16)}`);
      return;
    }
    this.#noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0;
    this.#expectHeader();
  }

  #expectHeader(): void {
    this.#expected = 'header';
    this.#wanted = Bytes.optionHeader;
    this.#bytes = new Uint8Array(Bytes.optionHeader);
  }

  #onHeader(header: Uint8Array): void {
    this.#optionCount += 1;
    if (readU32(header, 0) !== Magic.optionHigh || readU32(header, 4) !== Magic.optionLow) {
      this.#finish('an option without its magic number');
      return;
    }
    if (this.#optionCount > nbdLimits.optionsMax) {
      this.#finish(`more than ${nbdLimits.optionsMax} options`);
      return;
    }
    this.#option = readU32(header, 8);
    const length = readU32(header, 12);
    if (length > nbdLimits.optionBytesMax) {
      this.#onLongOption(length);
      return;
    }
    if (length === 0) {
      this.#onOption(new Uint8Array(0));
      return;
    }
    this.#expected = 'data';
    this.#wanted = length;
    this.#bytes = new Uint8Array(length);
  }

  #onLongOption(length: number): void {
    if (length > nbdLimits.optionBytesSkippedMax || this.#option === Option.EXPORT_NAME) {
      this.#finish(`option ${this.#option} with ${length} bytes of data`);
      return;
    }
    this.#skip = length;
    this.#fail(OptionReply.ERR_TOO_BIG, `options have at most ${nbdLimits.optionBytesMax} bytes of data`);
    this.#expectHeader();
  }

  #onOption(data: Uint8Array): void {
    switch (this.#option) {
      case Option.EXPORT_NAME:
        this.#onExportName(data);
        return;
      case Option.ABORT:
        this.#reply(OptionReply.ACK);
        this.#finish();
        return;
      case Option.LIST:
        this.#onList(data);
        break;
      case Option.INFO:
      case Option.GO:
        this.#onInfo(data);
        break;
      case Option.STRUCTURED_REPLY:
        this.#onStructuredReply(data);
        break;
      case Option.LIST_META_CONTEXT:
      case Option.SET_META_CONTEXT:
        this.#onMetaContext(data);
        break;
      case Option.STARTTLS:
        if (this.#options.securedFlags === undefined) {
          this.#fail(OptionReply.ERR_POLICY, 'TLS is not configured on this server');
        } else {
          // "FORCEDTLS mode".
          this.#fail(OptionReply.ERR_INVALID, 'TLS has begun already');
        }
        break;
      default:
        this.#fail(OptionReply.ERR_UNSUP, `option ${this.#option} is not known`);
    }
    if (!this.#finished) {
      this.#expectHeader();
    }
  }

  /** NBD_OPT_EXPORT_NAME can only succeed or end the connection. */
  #onExportName(data: Uint8Array): void {
    const name = decodeString(data);
    const served = name === undefined ? undefined : this.#options.exports.get(name);
    if (served === undefined) {
      this.#finish(`asked for an export that does not exist, ${quoted(name)}`);
      return;
    }
    const length = 10 + (this.#noZeroes ? 0 : Bytes.exportNamePadding);
    const at = this.#queue.reserve(length);
    const { slab } = this.#queue;
    slab.fill(0, at, at + length);
    writeU64(slab, at, served.target.size);
    writeU16(slab, at + 8, transmissionFlags(served, this.#structuredReplies));
    this.#choose(served, served.target.size);
  }

  #onList(data: Uint8Array): void {
    if (data.length > 0) {
      this.#fail(OptionReply.ERR_INVALID, 'a list has no data');
      return;
    }
    for (const { name, description } of this.#options.exports.values()) {
      const bytes = Buffer.from(name);
      const text = Buffer.from(description);
      const length = Buffer.alloc(4);
      writeU32(length, 0, bytes.length);
      this.#reply(OptionReply.SERVER, length, bytes, text);
    }
    this.#reply(OptionReply.ACK);
  }

  #onInfo(data: Uint8Array): void {
    const query = decodeExportQuery(data);
    if (query === undefined) {
      this.#fail(OptionReply.ERR_INVALID, 'the data is malformed');
      return;
    }
    const served = this.#options.exports.get(query.name);
    if (served === undefined) {
      this.#fail(OptionReply.ERR_UNKNOWN, `there is no export ${quoted(query.name)}`);
      return;
    }
    const { size } = served.target;
    const info = Buffer.alloc(12);
    writeU16(info, 0, Info.EXPORT);
    writeU64(info, 2, size);
    writeU16(info, 10, transmissionFlags(served, this.#structuredReplies));
    this.#reply(OptionReply.INFO, info);
    this.#replyBlockSizes(served);
    if (query.infos.includes(Info.NAME)) {
      this.#replyText(Info.NAME, served.name);
    }
    if (query.infos.includes(Info.DESCRIPTION) && served.description !== '') {
      this.#replyText(Info.DESCRIPTION, served.description);
    }
    this.#reply(OptionReply.ACK);
    if (this.#option === Option.GO) {
      this.#choose(served, size);
    }
  }

  /** Sent to those who did not ask, too: "Size constraints" wants them told, and clients ignore what they don't know. */
  #replyBlockSizes(served: ServedExport): void {
    const info = Buffer.alloc(14);
    writeU16(info, 0, Info.BLOCK_SIZE);
    writeU32(info, 2, served.blockSizes.minimum);
    writeU32(info, 6, served.blockSizes.preferred);
    writeU32(info, 10, served.blockSizes.maximum);
    this.#reply(OptionReply.INFO, info);
  }

  #replyText(info: number, text: string): void {
    const type = Buffer.alloc(2);
    writeU16(type, 0, info);
    this.#reply(OptionReply.INFO, type, Buffer.from(text));
  }

  #onStructuredReply(data: Uint8Array): void {
    if (data.length > 0) {
      this.#fail(OptionReply.ERR_INVALID, 'the option has no data');
      return;
    }
    this.#structuredReplies = true;
    this.#reply(OptionReply.ACK);
  }

  #onMetaContext(data: Uint8Array): void {
    const selects = this.#option === Option.SET_META_CONTEXT;
    if (selects) {
      // A selection replaces the one before, even when it fails.
      this.#contextExport = undefined;
    }
    const query = decodeMetaContextQuery(data);
    if (!this.#structuredReplies || query === undefined) {
      const reason = query === undefined ? 'the data is malformed' : 'structured replies come first';
      this.#fail(OptionReply.ERR_INVALID, reason);
      return;
    }
    const { exportName, queries } = query;
    if (!this.#options.exports.has(exportName)) {
      this.#fail(OptionReply.ERR_UNKNOWN, `there is no export ${quoted(exportName)}`);
      return;
    }
    // "base:" is a wildcard for a list, and selects nothing.
    const matches = selects
      ? queries.includes(ALLOCATION_CONTEXT)
      : queries.length === 0 || queries.includes('base:') || queries.includes(ALLOCATION_CONTEXT);
    if (matches) {
      const id = Buffer.alloc(4);
      writeU32(id, 0, selects ? ALLOCATION_CONTEXT_ID : 0);
      this.#reply(OptionReply.META_CONTEXT, id, Buffer.from(ALLOCATION_CONTEXT));
    }
    if (matches && selects) {
      this.#contextExport = exportName;
    }
    this.#reply(OptionReply.ACK);
  }

  #choose(served: ServedExport, size: number): void {
    this.#finished = true;
    this.#options.onChosen({
      served,
      size,
      structuredReplies: this.#structuredReplies,
      allocationContext: this.#structuredReplies && this.#contextExport === served.name,
    });
  }

  #finish(fault?: string): void {
    this.#finished = true;
    this.#options.onFinished(fault);
  }

  #fail(type: number, reason: string): void {
    this.#reply(type, Buffer.from(reason).subarray(0, nbdLimits.stringBytesMax));
  }

  /** "Fixed newstyle negotiation": one reply to the option at hand, its data in pieces. */
  #reply(type: number, ...data: readonly Uint8Array[]): void {
    const at = this.#queue.reserve(Bytes.optionReplyHeader);
    const length = data.reduce((sum, piece) => sum + piece.length, 0);
    writeOptionReply(this.#queue.slab, at, { option: this.#option, type, length });
    for (const piece of data) {
      this.#queue.copy(piece);
    }
  }
}

/** A name in a sentence: nothing in it can pass for another line, and it has an end. */
function quoted(name: string | undefined): string {
  return name === undefined ? '(not a string)' : JSON.stringify(name.slice(0, 64));
}
