/**
 * Netlink messages as bytes, without a socket: encoding of requests, decoding of answers. Every length of an
 * answer is checked before it is used, and every loop advances by at least one header, so hostile bytes end
 * in a PROTOCOL error and never in a wrong value. Numbers are in the host's order, which is little endian on
 * every machine this package supports. Layouts: include/uapi/linux/netlink.h and genetlink.h.
 */
import { VduseError } from '../base/errors.js';

/** nlmsg_flags. */
export const NLM_F = {
  REQUEST: 0x1,
  ACK: 0x4,
  /** Of a request: NLM_F_ROOT and NLM_F_MATCH. */
  DUMP: 0x300,
  /** Of an acknowledgement: the request's own bytes are left out, or attributes follow. */
  CAPPED: 0x100,
  ACK_TLVS: 0x200,
} as const;

/** nlmsg_type below NLMSG_MIN_TYPE; above it are the families. */
export const NLMSG = { NOOP: 1, ERROR: 2, DONE: 3, OVERRUN: 4 } as const;

/** struct nlmsghdr: len u32, type u16, flags u16, sequence u32, port u32. */
const MESSAGE_HEADER_BYTES = 16;
/** struct genlmsghdr: command u8, version u8, reserved u16. */
const GENERIC_HEADER_BYTES = 4;
/** struct nlattr: len u16, type u16. */
const ATTRIBUTE_HEADER_BYTES = 4;
const ATTRIBUTE_BYTES_MAX = 0xffff;
/** NLA_TYPE_MASK: the two top bits say "nested" and "network byte order". */
const ATTRIBUTE_TYPE_MASK = 0x3fff;
/** NLMSGERR_ATTR_MSG: the sentence that the kernel adds to an errno. */
const ERROR_TEXT_ATTRIBUTE = 1;
/** The kernel's MAX_ERRNO. */
const ERRNO_MAX = 4095;

export interface NetlinkMessage {
  readonly type: number;
  readonly flags: number;
  readonly sequence: number;
  readonly payload: Uint8Array;
}

export interface GenericMessage {
  readonly command: number;
  readonly attributes: NetlinkAttributes;
}

export interface GenericRequest {
  readonly family: number;
  readonly command: number;
  readonly version: number;
  readonly sequence: number;
  readonly flags: number;
  /** Attribute type and its string; the kernel gets it NUL terminated. */
  readonly attributes: readonly (readonly [type: number, value: string])[];
}

/** How a request ended: errno 0 and no text, or a positive errno with the kernel's own words where it has any. */
export interface NetlinkOutcome {
  readonly errno: number;
  readonly text: string;
}

/** NLMSG_ALIGN and NLA_ALIGN. */
function align(length: number): number {
  return (length + 3) & ~3;
}

function malformed(what: string): VduseError {
  return new VduseError('PROTOCOL', `netlink: ${what}`);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** The attributes of one message. Where a type repeats, the last one counts, as it does in the kernel. */
export class NetlinkAttributes {
  readonly #values = new Map<number, Uint8Array>();

  constructor(bytes: Uint8Array) {
    const view = viewOf(bytes);
    let offset = 0;
    while (offset < bytes.length) {
      const left = bytes.length - offset;
      if (left < ATTRIBUTE_HEADER_BYTES) {
        throw malformed(`${left} bytes are left where an attribute should start`);
      }
      const length = view.getUint16(offset, true);
      if (length < ATTRIBUTE_HEADER_BYTES || length > left) {
        throw malformed(`an attribute says it has ${length} bytes where ${left} are left`);
      }
      const type = view.getUint16(offset + 2, true) & ATTRIBUTE_TYPE_MASK;
      this.#values.set(type, bytes.subarray(offset + ATTRIBUTE_HEADER_BYTES, offset + length));
      offset += align(length);
    }
  }

  /** The text up to its first NUL. */
  string(type: number): string | undefined {
    const value = this.#values.get(type);
    if (value === undefined) {
      return undefined;
    }
    const end = value.indexOf(0);
    return Buffer.from(end < 0 ? value : value.subarray(0, end)).toString('utf8');
  }

  u16(type: number): number | undefined {
    return this.#number(type, 2)?.getUint16(0, true);
  }

  u32(type: number): number | undefined {
    return this.#number(type, 4)?.getUint32(0, true);
  }

  u64(type: number): bigint | undefined {
    return this.#number(type, 8)?.getBigUint64(0, true);
  }

  #number(type: number, size: number): DataView | undefined {
    const value = this.#values.get(type);
    if (value !== undefined && value.length !== size) {
      throw malformed(`attribute ${type} has ${value.length} bytes instead of ${size}`);
    }
    return value === undefined ? undefined : viewOf(value);
  }
}

/** Splits what one read returned into its messages. */
export function decodeMessages(bytes: Uint8Array): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  const view = viewOf(bytes);
  let offset = 0;
  while (offset < bytes.length) {
    const left = bytes.length - offset;
    if (left < MESSAGE_HEADER_BYTES) {
      throw malformed(`${left} bytes are left where a message should start`);
    }
    const length = view.getUint32(offset, true);
    if (length < MESSAGE_HEADER_BYTES || length > left) {
      throw malformed(`a message says it has ${length} bytes where ${left} are left`);
    }
    messages.push({
      type: view.getUint16(offset + 4, true),
      flags: view.getUint16(offset + 6, true),
      sequence: view.getUint32(offset + 8, true),
      payload: bytes.subarray(offset + MESSAGE_HEADER_BYTES, offset + length),
    });
    offset += align(length);
  }
  return messages;
}

/** The payload of a family's message. */
export function decodeGeneric(message: NetlinkMessage): GenericMessage {
  if (message.payload.length < GENERIC_HEADER_BYTES) {
    throw malformed(`a generic message has only ${message.payload.length} bytes of payload`);
  }
  return {
    command: message.payload[0],
    attributes: new NetlinkAttributes(message.payload.subarray(GENERIC_HEADER_BYTES)),
  };
}

/** The result that an NLMSG_ERROR (also the acknowledgement) or the NLMSG_DONE of a dump carries. */
export function decodeOutcome(message: NetlinkMessage): NetlinkOutcome {
  const { payload, flags, type } = message;
  if (payload.length < 4) {
    throw malformed('an acknowledgement has no result');
  }
  const errno = 0 - viewOf(payload).getInt32(0, true);
  if (errno < 0 || errno > ERRNO_MAX) {
    throw malformed(`an acknowledgement has the impossible result ${-errno}`);
  }
  if ((flags & NLM_F.ACK_TLVS) === 0) {
    return { errno, text: '' };
  }
  const start = type === NLMSG.DONE ? 4 : errorAttributesOffset(payload, flags);
  const attributes = new NetlinkAttributes(payload.subarray(start));
  return { errno, text: attributes.string(ERROR_TEXT_ATTRIBUTE) ?? '' };
}

/** struct nlmsgerr: the result, the request's header and, unless it was capped, the request's payload. */
function errorAttributesOffset(payload: Uint8Array, flags: number): number {
  const headerEnd = 4 + MESSAGE_HEADER_BYTES;
  if (payload.length < headerEnd) {
    throw malformed('an acknowledgement ends inside the header of its request');
  }
  if ((flags & NLM_F.CAPPED) !== 0) {
    return headerEnd;
  }
  const requestLength = viewOf(payload).getUint32(4, true);
  if (requestLength < MESSAGE_HEADER_BYTES || requestLength > payload.length - 4) {
    throw malformed(`an acknowledgement says its request had ${requestLength} bytes`);
  }
  return Math.min(4 + align(requestLength), payload.length);
}

/** One request, ready to be written to the socket. */
export function encodeRequest(request: GenericRequest): Uint8Array {
  const values = request.attributes.map(([type, value]) => ({ type, bytes: Buffer.from(`${value}\0`) }));
  let length = MESSAGE_HEADER_BYTES + GENERIC_HEADER_BYTES;
  for (const { type, bytes } of values) {
    if (
      bytes.length > ATTRIBUTE_BYTES_MAX - ATTRIBUTE_HEADER_BYTES ||
      bytes.indexOf(0) !== bytes.length - 1
    ) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `netlink attribute ${type}: its text is too long (${bytes.length - 1} bytes) or has a NUL inside`,
      );
    }
    length += align(ATTRIBUTE_HEADER_BYTES + bytes.length);
  }
  const out = new Uint8Array(length);
  const view = viewOf(out);
  view.setUint32(0, length, true);
  view.setUint16(4, request.family, true);
  view.setUint16(6, request.flags, true);
  view.setUint32(8, request.sequence, true);
  view.setUint8(MESSAGE_HEADER_BYTES, request.command);
  view.setUint8(MESSAGE_HEADER_BYTES + 1, request.version);
  let offset = MESSAGE_HEADER_BYTES + GENERIC_HEADER_BYTES;
  for (const { type, bytes } of values) {
    view.setUint16(offset, ATTRIBUTE_HEADER_BYTES + bytes.length, true);
    view.setUint16(offset + 2, type, true);
    out.set(bytes, offset + ATTRIBUTE_HEADER_BYTES);
    offset += align(ATTRIBUTE_HEADER_BYTES + bytes.length);
  }
  return out;
}
