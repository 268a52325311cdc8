/** What a server says in a handshake, in memory that has room for it. */
import { Bytes, HandshakeFlag, Magic, writeU16, writeU32 } from '../base/nbd-protocol.js';

/** "Newstyle negotiation": Bytes.greeting of them. */
export function writeGreeting(bytes: Uint8Array, at: number): void {
  writeU32(bytes, at, Magic.initHigh);
  writeU32(bytes, at + 4, Magic.initLow);
  writeU32(bytes, at + 8, Magic.optionHigh);
  writeU32(bytes, at + 12, Magic.optionLow);
  writeU16(bytes, at + 16, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES);
}

export interface OptionReplyHeader {
  /** Which option it answers. */
  readonly option: number;
  readonly type: number;
  /** Bytes of data that follow. */
  readonly length: number;
}

/** "Fixed newstyle negotiation": Bytes.optionReplyHeader of them. */
export function writeOptionReply(bytes: Uint8Array, at: number, reply: OptionReplyHeader): void {
  writeU32(bytes, at, Magic.optionReplyHigh);
  writeU32(bytes, at + 4, Magic.optionReplyLow);
  writeU32(bytes, at + 8, reply.option);
  writeU32(bytes, at + 12, reply.type);
  writeU32(bytes, at + Bytes.optionReplyHeader - 4, reply.length);
}
