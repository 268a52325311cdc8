/**
 * The device's reading of the rings, written from the specification without any of our code: slow, in
 * BigInt, with a list for everything. Hostile rings are given to both, and the answers must agree.
 */
import { MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { type NaivePiece, naivePieces, type TestGuest } from '../support/guest.js';
import type { QueueParts } from '../support/queue-pair.js';

export interface NaiveSegment extends NaivePiece {
  readonly writable: boolean;
}

export interface NaiveQueue {
  readonly guest: TestGuest;
  readonly regions: readonly MemoryRegion[];
  readonly parts: QueueParts;
  readonly size: number;
  readonly indirect: boolean;
  /** Buffers of the longest chain. */
  readonly buffersMax: number;
  /** Pieces of the longest chain, after buffers were split at region borders. */
  readonly piecesMax: number;
}

/** The segments of a chain, or why it is refused. */
export function readChainNaively(queue: NaiveQueue, head: number): NaiveSegment[] | 'invalid' | 'fault' {
  const { guest, regions, size } = queue;
  const segments: NaiveSegment[] = [];
  let table = queue.parts.table.hostAddress;
  let entries = size;
  let inTable = false;
  let index = head;
  for (let buffers = 0; buffers < queue.buffersMax; ) {
    if (index >= entries) {
      return 'invalid';
    }
    const at = table - guest.hostAddress + 16 * index;
    const address = guest.view.getBigUint64(at, true);
    const length = guest.view.getUint32(at + 8, true);
    const flags = guest.view.getUint16(at + 12, true);
    const next = guest.view.getUint16(at + 14, true);
    if (address >= 2n ** 53n) {
      return 'fault';
    }
    if ((flags & 4) === 4) {
      if (!queue.indirect || inTable || (flags & 1) === 1 || length === 0 || length % 16 !== 0) {
        return 'invalid';
      }
      const place = naivePieces(regions, { address, length }, MemoryAccess.READ);
      if (place?.length !== 1) {
        return 'fault';
      }
      table = place[0].hostAddress;
      entries = length / 16;
      inTable = true;
      index = 0;
      continue;
    }
    const writable = (flags & 2) === 2;
    if (!writable && segments.at(-1)?.writable === true) {
      return 'invalid';
    }
    const access = writable ? MemoryAccess.WRITE : MemoryAccess.READ;
    const pieces = naivePieces(regions, { address, length }, access);
    if (pieces === undefined) {
      return 'fault';
    }
    segments.push(...pieces.map((piece) => ({ ...piece, writable })));
    if (segments.length > queue.piecesMax) {
      return 'invalid';
    }
    buffers++;
    if ((flags & 1) === 0) {
      return segments;
    }
    index = next;
  }
  return 'invalid';
}

/** The heads that may be popped, or undefined where the available ring is broken. */
export function popNaively(queue: NaiveQueue, held: ReadonlySet<number>, from: number): number[] | undefined {
  const at = queue.parts.avail.hostAddress - queue.guest.hostAddress;
  const index = queue.guest.view.getUint16(at + 2, true);
  const count = (index - from + 65536) % 65536;
  if (count > queue.size) {
    return undefined;
  }
  const heads: number[] = [];
  for (let n = 0; n < count; n++) {
    const head = queue.guest.view.getUint16(at + 4 + 2 * ((from + n) % queue.size), true);
    if (head >= queue.size || held.has(head) || heads.includes(head)) {
      return undefined;
    }
    heads.push(head);
  }
  return heads;
}
