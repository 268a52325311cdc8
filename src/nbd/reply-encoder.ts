// Hot: synchronous, and a small reply allocates next to nothing.
/** Writes the replies of the transmission phase into a client's reply queue. */

import {
  ALLOCATION_CONTEXT_ID,
  Bytes,
  Command,
  CommandFlag,
  ExtentState,
  Magic,
  REPLY_FLAG_DONE,
  ReplyType,
  writeU16,
  writeU32,
  writeU64,
} from '../base/nbd-protocol.js';
import type { NbdExtent, NbdReadResult, NbdZeroes } from './nbd-export.js';
import { nbdLimits } from './nbd-limits.js';
import { COPIED_PAYLOAD_MAX, type ReplyQueue } from './reply-queue.js';
import type { Refusal, Request } from './request.js';

type Part = Uint8Array | NbdZeroes;

/** Sent for stretches of zeroes where the client wants them in full. Never written to. */
const zeroes = new Uint8Array(64 << 10);

const isData = (part: Part): part is Uint8Array => part instanceof Uint8Array;
const lengthOf = (part: Part): number => (isData(part) ? part.length : part.zeroes);

/** Whether some of it is sent from where it lies, so that it must stay. */
function isLent(parts: readonly Part[]): boolean {
  for (const part of parts) {
    if (isData(part) && part.length > COPIED_PAYLOAD_MAX) {
      return true;
    }
  }
  return false;
}

/** Bytes that a read result stands for. */
export function readResultLength(result: NbdReadResult): number {
  let length = 0;
  for (const part of result.parts) {
    length += lengthOf(part);
  }
  return length;
}

export class ReplyEncoder {
  readonly #queue: ReplyQueue;
  readonly #structured: boolean;

  constructor(queue: ReplyQueue, structured: boolean) {
    this.#queue = queue;
    this.#structured = structured;
  }

  /** Success without a payload. A simple reply will do, but never for a read ("Simple reply message"). */
  done(request: Request): void {
    if (this.#structured && request.command === Command.READ) {
      this.#chunk(request, ReplyType.NONE, { length: 0, isLast: true });
    } else {
      this.#simple(request, 0);
    }
  }

  failed(request: Request, refusal: Refusal): void {
    if (!this.#structured) {
      this.#simple(request, refusal.errno);
      return;
    }
    const text = Buffer.from(refusal.text).subarray(0, nbdLimits.errorTextBytesMax);
    this.#chunk(request, ReplyType.ERROR, { length: 6 + text.length, isLast: true });
    const at = this.#queue.reserve(6);
    writeU32(this.#queue.slab, at, refusal.errno);
    writeU16(this.#queue.slab, at + 4, text.length);
    this.#queue.copy(text);
  }

  /** The data of a read. Gives it back at once when all of it was copied, else when it is sent. */
  read(request: Request, result: NbdReadResult): void {
    const { parts } = result;
    if (this.#structured) {
      this.#chunks(request, parts);
    } else {
      this.#simple(request, 0);
      this.#append(parts, 0, parts.length);
    }
    if (isLent(parts)) {
      this.#queue.whenSent(() => result.release());
    } else {
      result.release();
    }
  }

  /** "NBD_REPLY_TYPE_BLOCK_STATUS". */
  blockStatus(request: Request, extents: readonly NbdExtent[]): void {
    const length = 4 + Bytes.blockDescriptor * extents.length;
    this.#chunk(request, ReplyType.BLOCK_STATUS, { length, isLast: true });
    let at = this.#queue.reserve(length);
    const { slab } = this.#queue;
    writeU32(slab, at, ALLOCATION_CONTEXT_ID);
    at += 4;
    for (const extent of extents) {
      writeU32(slab, at, extent.length);
      writeU32(slab, at + 4, (extent.hole ? ExtentState.HOLE : 0) | (extent.zero ? ExtentState.ZERO : 0));
      at += Bytes.blockDescriptor;
    }
  }

  /** One chunk for each stretch of data or zeroes; a single one of data if the client asks for that. */
  #chunks(request: Request, parts: readonly Part[]): void {
    const isWhole = request.has(CommandFlag.DF);
    const end = request.offset + request.length;
    let offset = request.offset;
    for (let from = 0; from < parts.length; ) {
      let to = from + 1;
      let length = lengthOf(parts[from]);
      while (to < parts.length && (isWhole || isData(parts[to]) === isData(parts[from]))) {
        length += lengthOf(parts[to]);
        to += 1;
      }
      const isLast = offset + length === end;
      if (length === 0) {
        // "NBD_REPLY_TYPE_OFFSET_DATA": a chunk describes at least one byte.
      } else if (isWhole || isData(parts[from])) {
        this.#chunk(request, ReplyType.OFFSET_DATA, { length: Bytes.dataOffset + length, isLast });
        const at = this.#queue.reserve(Bytes.dataOffset);
        writeU64(this.#queue.slab, at, offset);
        this.#append(parts, from, to);
      } else {
        this.#chunk(request, ReplyType.OFFSET_HOLE, { length: Bytes.holePayload, isLast });
        const at = this.#queue.reserve(Bytes.holePayload);
        writeU64(this.#queue.slab, at, offset);
        writeU32(this.#queue.slab, at + 8, length);
      }
      offset += length;
      from = to;
    }
  }

  /** The bytes of some parts, zeroes in full. */
  #append(parts: readonly Part[], from: number, to: number): void {
    for (let n = from; n < to; n++) {
      const part = parts[n];
      if (!isData(part)) {
        this.#appendZeroes(part.zeroes);
      } else if (part.length > COPIED_PAYLOAD_MAX) {
        this.#queue.lend(part);
      } else {
        this.#queue.copy(part);
      }
    }
  }

  #appendZeroes(count: number): void {
    for (let left = count; left > 0; left -= zeroes.length) {
      const bytes = left < zeroes.length ? zeroes.subarray(0, left) : zeroes;
      if (bytes.length > COPIED_PAYLOAD_MAX) {
        this.#queue.lend(bytes);
      } else {
        this.#queue.copy(bytes);
      }
    }
  }

  /** "Simple reply message". */
  #simple(request: Request, errno: number): void {
    const at = this.#queue.reserve(Bytes.simpleReply);
    const { slab } = this.#queue;
    writeU32(slab, at, Magic.simpleReply);
    writeU32(slab, at + 4, errno);
    writeU32(slab, at + 8, request.cookieHigh);
    writeU32(slab, at + 12, request.cookieLow);
  }

  /** The header of a "Structured reply chunk message". */
  #chunk(request: Request, type: number, chunk: { length: number; isLast: boolean }): void {
    const at = this.#queue.reserve(Bytes.structuredHeader);
    const { slab } = this.#queue;
    writeU32(slab, at, Magic.structuredReply);
    writeU16(slab, at + 4, chunk.isLast ? REPLY_FLAG_DONE : 0);
    writeU16(slab, at + 6, type);
    writeU32(slab, at + 8, request.cookieHigh);
    writeU32(slab, at + 12, request.cookieLow);
    writeU32(slab, at + 16, chunk.length);
  }
}
