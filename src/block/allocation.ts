/** Which parts of a node hold data, as far as that can be asked without reading them. */
import { Errno } from '../native/errno.js';
import { seekFile } from '../native/fd.js';
import { addressOf } from '../native/ffi.js';
import { BlockOp, canTellStatus, type EngineSpec } from './engine.js';
import type { EngineClient } from './engine-client.js';
import { type AllocationExtent, extentBytes, wholeExtents } from './extent-list.js';

/** Extents of one answer: whoever wants more asks again from where they end. */
const extentsMax = 1024;
/** Answers that are waited for before a disk counts as one with data. */
const answersMax = 4096;

interface Range {
  readonly offset: number;
  readonly length: number;
}

interface AlignedRange extends Range {
  /** Extents have whole blocks of so many bytes, counted from the offset; the node's own when absent. */
  readonly alignment?: number;
}

/**
 * The extents of the client's node from `offset` on, at least one, up to `length` bytes. A node that cannot tell, or
 * fails to, is all data.
 */
export async function allocationExtents(
  client: EngineClient,
  range: AlignedRange,
): Promise<AllocationExtent[]> {
  const { node } = client;
  const alignment = Math.max(node.limits.requestAlignment, range.alignment ?? 1);
  if (range.length > 0 && canTellStatus(node.engine)) {
    return engineExtents(client, range, alignment);
  }
  const place = fileBelow(node.engine, range.offset);
  return place === undefined || range.length === 0
    ? [{ length: range.length, hole: false, zero: false }]
    : fileExtents(place.fd, { offset: place.offset, length: range.length, alignment });
}

/** Whether all of a node is known to read as zeroes. */
export async function readsAsZeroes(client: EngineClient): Promise<boolean> {
  const { size } = client.node;
  let at = 0;
  for (let n = 0; n < answersMax && at < size; n++) {
    for (const { length, zero } of await allocationExtents(client, { offset: at, length: size - at })) {
      if (!zero) {
        return false;
      }
      at += length;
    }
  }
  return at >= size;
}

async function engineExtents(
  client: EngineClient,
  { offset, length }: Range,
  alignment: number,
): Promise<AllocationExtent[]> {
  const list = new Uint32Array(extentsMax * (extentBytes / Uint32Array.BYTES_PER_ELEMENT));
  const request = { offset, length, address: addressOf(list), addressBytes: list.byteLength };
  try {
    await client.request({ op: BlockOp.STATUS, ...request });
  } catch {
    // Reading tells what is wrong, if anything is.
    return [{ length, hole: false, zero: false }];
  }
  return wholeExtents(list, alignment);
}

function fileExtents(fd: number, range: Required<AlignedRange>): AllocationExtent[] {
  const { offset, length, alignment } = range;
  const end = offset + length;
  const extents: AllocationExtent[] = [];
  let at = offset;
  while (at < end && extents.length < extentsMax) {
    const found = firstData(fd, at, end);
    const data = Math.max(at, found === end ? end : found - ((found - offset) % alignment));
    if (data > at) {
      extents.push({ length: data - at, hole: true, zero: true });
      at = data;
      continue;
    }
    const hole = seekFile(fd, 'hole', at);
    const next = hole <= at ? end : Math.min(end, offset + alignUp(hole - offset, alignment));
    extents.push({ length: next - at, hole: false, zero: false });
    at = next;
  }
  return extents;
}

/** The file at the bottom, and where in it the offset is. */
function fileBelow(engine: EngineSpec, offset: number): { fd: number; offset: number } | undefined {
  if (engine.kind === 'file') {
    return { fd: engine.fd, offset };
  }
  return 'child' in engine
    ? fileBelow(engine.child, offset + (engine.kind === 'raw' ? engine.offset : 0))
    : undefined;
}

/** Where data begins: `at` itself when that cannot be told, `end` when there is none before it. */
function firstData(fd: number, at: number, end: number): number {
  const found = seekFile(fd, 'data', at);
  if (found === -Errno.ENXIO) {
    return end;
  }
  return found < at ? at : Math.min(end, found);
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
