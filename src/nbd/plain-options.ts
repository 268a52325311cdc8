/**
 * What a client says before TLS to a server that insists on it ("FORCEDTLS mode"). Of what comes unencrypted nothing
 * is kept but the client's flags, and nothing is told: whoever is in between may have written it, and may read it.
 */
import { Bytes, HandshakeFlag, Magic, Option, OptionReply, readU32 } from '../base/nbd-protocol.js';
import { nbdLimits } from './nbd-limits.js';
import { writeOptionReply } from './option-encoder.js';

export interface PlainStep {
  readonly replies: Uint8Array;
  /** Whether TLS begins, or the client gave up; undefined: more options are to come. */
  readonly end?: 'tls' | 'abort';
  /** The client broke the protocol, and is to be dropped. */
  readonly fault?: string;
}

export class PlainOptions {
  /** What the client said to the greeting. */
  clientFlags = 0;
  readonly #header = new Uint8Array(Bytes.optionHeader);
  #filled = 0;
  #wanted: number = Bytes.clientFlags;
  #isGreeted = false;
  /** Bytes of an option's data that are still to come, and mean nothing. */
  #skip = 0;
  #count = 0;
  #replies: Uint8Array[] = [];

  /** Takes all of the chunk, or as much as there is until the end or a fault. */
  take(chunk: Uint8Array): PlainStep {
    this.#replies = [];
    let outcome: Pick<PlainStep, 'end' | 'fault'> = {};
    let at = 0;
    while (at < chunk.length && outcome.end === undefined && outcome.fault === undefined) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, chunk.length - at);
        this.#skip -= skipped;
        at += skipped;
        continue;
      }
      const taken = Math.min(this.#wanted - this.#filled, chunk.length - at);
      this.#header.set(chunk.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled === this.#wanted) {
        this.#filled = 0;
        outcome = this.#isGreeted ? this.#onOption() : this.#onFlags();
      }
    }
    if (outcome.end === 'tls' && at < chunk.length) {
      // Nobody speaks before the answer has come, but for somebody in between who wants it taken for the client's.
      return { replies: new Uint8Array(0), fault: 'it sent unencrypted bytes after NBD_OPT_STARTTLS' };
    }
    return { replies: Buffer.concat(this.#replies), ...outcome };
  }

  #onFlags(): Pick<PlainStep, 'fault'> {
    const flags = readU32(this.#header, 0);
    this.clientFlags = flags;
    this.#isGreeted = true;
    this.#wanted = Bytes.optionHeader;
    if ((flags & ~(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)) !== 0) {
      return { fault: `unknown client flags 0x${flags.toString(16)}` };
    }
    // "TLS requires fixed newstyle negotiation": without it an option has no answer.
    return (flags & HandshakeFlag.FIXED_NEWSTYLE) === 0 ? { fault: 'it can not negotiate TLS' } : {};
  }

  #onOption(): Pick<PlainStep, 'end' | 'fault'> {
    this.#count += 1;
    if (readU32(this.#header, 0) !== Magic.optionHigh || readU32(this.#header, 4) !== Magic.optionLow) {
      return { fault: 'an option without its magic number' };
    }
    if (this.#count > nbdLimits.plainOptionsMax) {
      return { fault: `more than ${nbdLimits.plainOptionsMax} options before TLS` };
    }
    const option = readU32(this.#header, 8);
    const length = readU32(this.#header, 12);
    if (option === Option.EXPORT_NAME) {
      // "FORCEDTLS mode": this option has no answer that is an error.
      return { fault: 'it asked for an export without TLS' };
    }
    if (length > nbdLimits.optionBytesMax) {
      return { fault: `option ${option} with ${length} bytes of data before TLS` };
    }
    this.#skip = length;
    if (option === Option.ABORT) {
      this.#reply(option, OptionReply.ACK);
      return { end: 'abort' };
    }
    if (option === Option.STARTTLS && length === 0) {
      this.#reply(option, OptionReply.ACK);
      return { end: 'tls' };
    }
    this.#reply(option, option === Option.STARTTLS ? OptionReply.ERR_INVALID : OptionReply.ERR_TLS_REQD);
    return {};
  }

  #reply(option: number, type: number): void {
    const bytes = new Uint8Array(Bytes.optionReplyHeader);
    writeOptionReply(bytes, 0, { option, type, length: 0 });
    this.#replies.push(bytes);
  }
}
