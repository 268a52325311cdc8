// Hot file: synchronous, no allocation per request, no throw.
/** Chunks of a structured reply that are whole in the buffer: holes, errors, and nothing ("Structured reply types"). */
import { Bytes, REPLY_FLAG_DONE, ReplyType, readU16, readU32, readU64 } from '../../../base/nbd-protocol.js';
import { fromWireErrno } from './wire-errno.js';
import type { WireRequests } from './wire-requests.js';

/** "Error chunk types": several may belong to one read. */
const errorChunksMax = 64;
const ERROR_BIT = 1 << 15;
const errorBytesMin = 6;

/** With the words of an error. */
export const smallChunkBytesMax = 8192;

/** Takes in a chunk for a request, its header at `at`. Returns what is wrong with it, '' for nothing. */
export function takeSmallChunk(buffer: Uint8Array, at: number, requests: WireRequests, slot: number): string {
  const type = readU16(buffer, at + 6);
  const length = readU32(buffer, at + 16);
  const payload = at + Bytes.structuredHeader;
  if (type === ReplyType.OFFSET_HOLE && length === Bytes.holePayload) {
    const from = readU64(buffer, payload) - requests.offset[slot];
    const bytes = readU32(buffer, payload + 8);
    if (!requests.isMissing(slot, from, bytes)) {
      return 'a chunk has a hole that was not asked for';
    }
    requests.zeroPayload(slot, from, bytes);
    requests.received[slot] += bytes;
    return '';
  }
  if ((type & ERROR_BIT) !== 0 && length >= errorBytesMin) {
    if (requests.errorChunks[slot]++ >= errorChunksMax) {
      return 'a reply has no end of errors';
    }
    requests.error[slot] = fromWireErrno(readU32(buffer, payload));
    return '';
  }
  if (type !== ReplyType.NONE || length !== 0) {
    return 'a chunk is of a type that can not be here';
  }
  return (readU16(buffer, at + 4) & REPLY_FLAG_DONE) === 0 ? 'a chunk has nothing and is not the last' : '';
}
