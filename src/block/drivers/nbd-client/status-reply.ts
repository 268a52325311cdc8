// Hot file: synchronous, no allocation per request, no throw.
/**
 * The extents of a reply to NBD_CMD_BLOCK_STATUS ("NBD_REPLY_TYPE_BLOCK_STATUS"), which become an ExtentList. They are
 * taken as they come, as a server may tell of more of them than there is memory for: what finds no room, and what is
 * beyond the range that was asked for, is dropped.
 */
import { Bytes, Command, readU32 } from '../../../base/nbd-protocol.js';
import { addressOf } from '../../../native/ffi.js';
import { ExtentFlag, extentBytes } from '../../extent-list.js';
import type { WireRequests } from './wire-requests.js';

/** The number of the context, before the extents. */
const contextBytes = 4;
/** Of one chunk: a million extents, as many as servers tell at most, twice. */
const chunkBytesMax = 16 << 20;
const knownFlags = ExtentFlag.HOLE | ExtentFlag.ZERO;
/** Extents that go to the request's memory together. */
const batch = 128;

/** Of a chunk up to the first extent. */
export const statusHeaderBytes = Bytes.structuredHeader + contextBytes;

/** Returns what is wrong with a chunk whose payload has `length` bytes, '' for nothing. */
export function checkStatusChunk(requests: WireRequests, slot: number, length: number): string {
  const bytes = length - contextBytes;
  if (requests.command[slot] !== Command.BLOCK_STATUS || requests.received[slot] !== 0) {
    return 'a chunk has extents that were not asked for';
  }
  if (bytes <= 0 || bytes % Bytes.blockDescriptor !== 0 || bytes > chunkBytesMax) {
    return 'a chunk of extents has a length that it can not have';
  }
  return '';
}

export class StatusReply {
  /** Bytes of the chunk that are still to come. */
  left = 0;
  readonly #words = new Uint32Array(2 * batch);
  readonly #wordsAddress = addressOf(this.#words);
  #requests: WireRequests | undefined;
  #slot = 0;
  /** Bytes of the list that are written, and that there is room for. */
  #written = 0;
  #room = 0;

  /** Begins with a chunk whose payload has `length` bytes, which `checkStatusChunk` has found good. */
  begin(requests: WireRequests, slot: number, length: number): void {
    this.left = length - contextBytes;
    this.#requests = requests;
    this.#slot = slot;
    this.#written = 0;
    this.#room = requests.roomBytes(slot);
  }

  /** The connection is gone. */
  reset(): void {
    this.left = 0;
    this.#requests = undefined;
  }

  /** Takes whole extents out of the buffer. Returns their bytes, or -1: an extent is empty. */
  take(buffer: Uint8Array, start: number, available: number): number {
    const count = Math.floor(Math.min(available, this.left) / Bytes.blockDescriptor);
    const requests = this.#requests!;
    const slot = this.#slot;
    const asked = requests.length[slot];
    let staged = 0;
    for (let n = 0; n < count; n++) {
      const at = start + n * Bytes.blockDescriptor;
      const length = Math.min(readU32(buffer, at), asked - requests.received[slot]);
      if (readU32(buffer, at) === 0) {
        return -1;
      }
      if (length > 0 && this.#written + staged * extentBytes < this.#room) {
        this.#words[2 * staged] = length;
        this.#words[2 * staged + 1] = readU32(buffer, at + 4) & knownFlags;
        requests.received[slot] += length;
        staged++;
      }
      if (staged === batch) {
        this.#write(staged);
        staged = 0;
      }
    }
    this.#write(staged);
    this.left -= count * Bytes.blockDescriptor;
    if (this.left === 0) {
      this.#endList();
    }
    return count * Bytes.blockDescriptor;
  }

  #write(count: number): void {
    const bytes = count * extentBytes;
    if (bytes > 0) {
      this.#requests!.copyPayload(this.#slot, this.#written, bytes, this.#wordsAddress, true);
      this.#written += bytes;
    }
  }

  /** Behind the last extent there may be those of an answer that a broken connection cut short. */
  #endList(): void {
    if (this.#written < this.#room) {
      this.#words[0] = 0;
      this.#words[1] = 0;
      this.#write(1);
    }
  }
}
