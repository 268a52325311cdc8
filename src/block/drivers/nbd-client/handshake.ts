/**
 * The client's side of the handshake, without input and output: a generator that says what to send and how much to
 * receive, so that a queue thread and the main thread can drive the same one. Every length and count that the server
 * tells is bounded here.
 */
import { VduseError } from '../../../base/errors.js';
import {
  ALLOCATION_CONTEXT,
  Bytes,
  HandshakeFlag,
  Info,
  Magic,
  Option,
  OptionReply,
  readU16,
  readU32,
  readU64,
  TransmissionFlag,
  writeU16,
  writeU32,
} from '../../../base/nbd-protocol.js';

/** What is to be done next; the bytes that were received are the next value of the generator. */
export type HandshakeStep = { readonly send: Uint8Array } | { readonly receive: number };
export type HandshakeSteps<Result> = Generator<HandshakeStep, Result, Uint8Array>;

/** What the server said of the export. */
export interface NbdExportInfo {
  /** Bytes. */
  readonly size: number;
  /** TransmissionFlag bits. */
  readonly flags: number;
  readonly structuredReplies: boolean;
  /** The number of base:allocation on this connection; undefined: the server does not tell what is allocated. */
  readonly allocationContext: number | undefined;
  /** "Size constraints", bytes. What the server did not tell is what the protocol says then. */
  readonly minimumBlockSize: number;
  readonly preferredBlockSize: number;
  readonly payloadBytesMax: number;
}

/** "Size constraints": a server that says nothing takes this much. */
const defaultPayloadBytes = 32 << 20;
const defaultPreferredBlockSize = 4096;
const minimumBlockSizeMax = 65536;
/** Replies to one option, and bytes of one; the protocol's own replies are far fewer and shorter. */
const repliesMax = 128;
const replyBytesMax = 16 << 10;
/** Of what a server says in words. */
const textMax = 200;

const protocolError = (message: string) => new VduseError('PROTOCOL', `NBD handshake: ${message}`);

type Negotiated = Pick<NbdExportInfo, 'structuredReplies' | 'allocationContext'>;
const nothingNegotiated: Negotiated = { structuredReplies: false, allocationContext: undefined };

interface OptionAnswer {
  readonly type: number;
  readonly data: Uint8Array;
}

/** Throws PROTOCOL, NOT_SUPPORTED, NOT_FOUND or PERMISSION_DENIED. */
export function* handshake(exportName: string): HandshakeSteps<NbdExportInfo> {
  const { fixed, noZeroes } = yield* greet();
  if (!fixed) {
    return yield* chooseByName(exportName, noZeroes, nothingNegotiated);
  }
  const structuredReplies = yield* negotiateStructuredReplies();
  // "Metadata querying": its replies are structured ones.
  const allocationContext = structuredReplies ? yield* negotiateAllocation(exportName) : undefined;
  const chosen = { structuredReplies, allocationContext };
  const info = yield* go(exportName, chosen);
  return info ?? (yield* chooseByName(exportName, noZeroes, chosen));
}

/** The part of the handshake that is in the clear before TLS ("The NBD_OPT_STARTTLS option"). */
export function* startTls(greeting: Uint8Array): HandshakeSteps<void> {
  const { fixed } = decodeGreeting(greeting);
  if (!fixed) {
    throw new VduseError('NOT_SUPPORTED', 'the NBD server is too old for TLS (it is not fixed newstyle)');
  }
  yield { send: clientFlags(readU16(greeting, 16)) };
  yield { send: encodeOption(Option.STARTTLS, new Uint8Array(0)) };
  const { type, data } = yield* receiveAnswer(Option.STARTTLS);
  if (type !== OptionReply.ACK) {
    throw new VduseError('NOT_SUPPORTED', `the NBD server refuses TLS${describe(data)}`, {
      hint: 'Leave tls-creds out, or start the server with TLS.',
    });
  }
}

function* greet(): HandshakeSteps<{ fixed: boolean; noZeroes: boolean }> {
  const greeting = yield { receive: Bytes.greeting };
  const flags = decodeGreeting(greeting);
  yield { send: clientFlags(readU16(greeting, 16)) };
  return flags;
}

function decodeGreeting(greeting: Uint8Array): { fixed: boolean; noZeroes: boolean } {
  if (readU32(greeting, 0) !== Magic.initHigh || readU32(greeting, 4) !== Magic.initLow) {
    throw protocolError('the server does not speak NBD (its first bytes are not NBDMAGIC)');
  }
  if (readU32(greeting, 8) !== Magic.optionHigh || readU32(greeting, 12) !== Magic.optionLow) {
    throw new VduseError('NOT_SUPPORTED', 'the NBD server speaks the oldstyle protocol', {
      hint: 'Start it with newstyle negotiation; for nbdkit that is the default.',
    });
  }
  const flags = readU16(greeting, 16);
  return {
    fixed: (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0,
    noZeroes: (flags & HandshakeFlag.NO_ZEROES) !== 0,
  };
}

/** "Client flags": those of the server's that are known here. */
function clientFlags(offered: number): Uint8Array {
  const flags = new Uint8Array(Bytes.clientFlags);
  writeU32(flags, 0, offered & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES));
  return flags;
}

function* negotiateStructuredReplies(): HandshakeSteps<boolean> {
  yield { send: encodeOption(Option.STRUCTURED_REPLY, new Uint8Array(0)) };
  const { type, data } = yield* receiveAnswer(Option.STRUCTURED_REPLY);
  if (type === OptionReply.ERR_TLS_REQD) {
    throw tlsRequired(data);
  }
  // Any refusal is one: simple replies do as well.
  return type === OptionReply.ACK;
}

/** NBD_OPT_SET_META_CONTEXT with one query. Returns the context's number, or undefined where the server has none. */
function* negotiateAllocation(exportName: string): HandshakeSteps<number | undefined> {
  yield { send: encodeOption(Option.SET_META_CONTEXT, encodeMetaQuery(exportName)) };
  let context: number | undefined;
  for (let n = 0; n < 2; n++) {
    const { type, data } = yield* receiveAnswer(Option.SET_META_CONTEXT);
    if (type === OptionReply.ACK) {
      return context;
    }
    if (type >= OptionReply.ERR_UNSUP) {
      // Whatever is wrong with the export itself, the next option tells it.
      return undefined;
    }
    if (type !== OptionReply.META_CONTEXT || context !== undefined) {
      break;
    }
    if (data.length < 4 || Buffer.from(data.subarray(4)).toString() !== ALLOCATION_CONTEXT) {
      throw protocolError('the server names another metadata context than the one that was asked for');
    }
    context = readU32(data, 0);
  }
  throw protocolError('the server answers more than one metadata context');
}

/** NBD_OPT_GO. Undefined: the server does not know it. */
function* go(exportName: string, chosen: Negotiated): HandshakeSteps<NbdExportInfo | undefined> {
  yield { send: encodeOption(Option.GO, encodeGo(exportName)) };
  let basic: { size: number; flags: number } | undefined;
  let sizes: BlockSizes = unknownSizes;
  for (let n = 0; n < repliesMax; n++) {
    const { type, data } = yield* receiveAnswer(Option.GO);
    if (type === OptionReply.INFO) {
      if (data.length < 2) {
        throw protocolError('an information reply is empty');
      }
      const kind = readU16(data, 0);
      if (kind === Info.EXPORT) {
        basic = decodeExport(data);
      } else if (kind === Info.BLOCK_SIZE) {
        sizes = decodeBlockSizes(data);
      }
    } else if (type === OptionReply.ACK) {
      if (basic === undefined) {
        throw protocolError('the server did not tell the size of the export');
      }
      return checkInfo({ ...basic, ...sizes, ...chosen });
    } else if (type === OptionReply.ERR_UNSUP) {
      return undefined;
    } else {
      throw goError(exportName, type, data);
    }
  }
  throw protocolError('the server does not stop to inform about the export');
}

/** NBD_OPT_EXPORT_NAME, which has no error replies: the server closes the connection instead. */
function* chooseByName(
  exportName: string,
  noZeroes: boolean,
  chosen: Negotiated,
): HandshakeSteps<NbdExportInfo> {
  yield { send: encodeOption(Option.EXPORT_NAME, Buffer.from(exportName)) };
  const reply = yield { receive: noZeroes ? 10 : 10 + Bytes.exportNamePadding };
  const basic = { size: readU64(reply, 0), flags: readU16(reply, 8) };
  return checkInfo({ ...basic, ...unknownSizes, ...chosen });
}

function* receiveAnswer(option: number): HandshakeSteps<OptionAnswer> {
  const header = yield { receive: Bytes.optionReplyHeader };
  const isReply = readU32(header, 0) === Magic.optionReplyHigh && readU32(header, 4) === Magic.optionReplyLow;
  if (!isReply || readU32(header, 8) !== option) {
    throw protocolError(`the server does not answer option ${option}`);
  }
  const type = readU32(header, 12);
  const length = readU32(header, 16);
  if (length > replyBytesMax) {
    throw protocolError(`the server answers option ${option} with ${length} bytes`);
  }
  return { type, data: length === 0 ? new Uint8Array(0) : yield { receive: length } };
}

interface BlockSizes {
  readonly minimumBlockSize: number;
  readonly preferredBlockSize: number;
  readonly payloadBytesMax: number;
}

const unknownSizes: BlockSizes = {
  minimumBlockSize: 1,
  preferredBlockSize: defaultPreferredBlockSize,
  payloadBytesMax: defaultPayloadBytes,
};

function decodeExport(data: Uint8Array): { size: number; flags: number } {
  if (data.length !== 12) {
    throw protocolError(`the size of the export comes in ${data.length} bytes instead of 12`);
  }
  return { size: readU64(data, 2), flags: readU16(data, 10) };
}

function decodeBlockSizes(data: Uint8Array): BlockSizes {
  if (data.length !== 14) {
    throw protocolError(`the block sizes come in ${data.length} bytes instead of 14`);
  }
  const minimum = readU32(data, 2);
  const preferred = readU32(data, 6);
  const maximum = readU32(data, 10);
  const valid =
    isPowerOfTwo(minimum) &&
    minimum <= minimumBlockSizeMax &&
    isPowerOfTwo(preferred) &&
    preferred >= minimum &&
    maximum >= minimum &&
    // "Size constraints": a multiple of the minimum, or all ones.
    (maximum % minimum === 0 || maximum === 0xffff_ffff);
  if (!valid) {
    throw protocolError(`block sizes ${minimum}, ${preferred} and ${maximum} can't be`);
  }
  return {
    minimumBlockSize: minimum,
    preferredBlockSize: preferred,
    payloadBytesMax: Math.min(maximum, defaultPayloadBytes),
  };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

function checkInfo(info: NbdExportInfo): NbdExportInfo {
  if (!Number.isSafeInteger(info.size)) {
    throw protocolError('the export is larger than 8 PiB');
  }
  if ((info.flags & TransmissionFlag.HAS_FLAGS) === 0) {
    throw protocolError('the server does not tell its transmission flags');
  }
  return info;
}

function encodeOption(option: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(Bytes.optionHeader + data.length);
  writeU32(bytes, 0, Magic.optionHigh);
  writeU32(bytes, 4, Magic.optionLow);
  writeU32(bytes, 8, option);
  writeU32(bytes, 12, data.length);
  bytes.set(data, Bytes.optionHeader);
  return bytes;
}

/** The name and one request for information: the block sizes, which we promise to observe by asking. */
function encodeGo(exportName: string): Uint8Array {
  const name = Buffer.from(exportName);
  const data = new Uint8Array(4 + name.length + 4);
  writeU32(data, 0, name.length);
  data.set(name, 4);
  writeU16(data, 4 + name.length, 1);
  writeU16(data, 6 + name.length, Info.BLOCK_SIZE);
  return data;
}

/** The export's name and one query. */
function encodeMetaQuery(exportName: string): Uint8Array {
  const name = Buffer.from(exportName);
  const query = Buffer.from(ALLOCATION_CONTEXT);
  const data = new Uint8Array(4 + name.length + 4 + 4 + query.length);
  writeU32(data, 0, name.length);
  data.set(name, 4);
  writeU32(data, 4 + name.length, 1);
  writeU32(data, 8 + name.length, query.length);
  data.set(query, 12 + name.length);
  return data;
}

function goError(exportName: string, type: number, data: Uint8Array): VduseError {
  switch (type) {
    case OptionReply.ERR_UNKNOWN:
      return new VduseError(
        'NOT_FOUND',
        `the NBD server has no export '${exportName}' for us${describe(data)}`,
        {
          hint: 'List its exports: nbdinfo --list URI',
        },
      );
    case OptionReply.ERR_TLS_REQD:
      return tlsRequired(data);
    case OptionReply.ERR_POLICY:
      return new VduseError(
        'PERMISSION_DENIED',
        `the NBD server denies export '${exportName}'${describe(data)}`,
      );
    case OptionReply.ERR_SHUTDOWN:
      return new VduseError('ABORTED', `the NBD server is shutting down${describe(data)}`);
    default:
      return protocolError(
        `the server refuses export '${exportName}' with error 0x${type.toString(16)}${describe(data)}`,
      );
  }
}

function tlsRequired(data: Uint8Array): VduseError {
  return new VduseError('PERMISSION_DENIED', `the NBD server requires TLS${describe(data)}`, {
    hint: 'Give tls-creds: the id of a tls-creds-x509 or tls-creds-psk object.',
  });
}

/** What the server says in words, fit for a log line. */
function describe(data: Uint8Array): string {
  const text = Buffer.from(data.subarray(0, textMax))
    .toString()
    .replace(/[^\x20-\x7e]+/g, ' ')
    .trim();
  return text === '' ? '' : `; it says: ${text}`;
}
