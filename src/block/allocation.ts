/** Which parts of a node hold data, as far as that can be asked without reading them. */
import { Errno } from '../native/errno.js';
import { seekFile } from '../native/fd.js';
import { addressOf } from '../native/ffi.js';
import { BlockOp, canTellStatus, type EngineSpec } from './engine.js';
import type { EngineClient } from './engine-client.js';
import { type AllocationExtent, extentBytes, wholeExtents } from './extent-list.js';
import type { BlockNode } from './node.js';

/** Extents of one answer: whoever wants more asks again from where they end. */
const extentsMax = 1024;
/** Answers that are waited for before a disk counts as one with data. */
const answersMax = 4096;

interface Range {
  readonly offset: number;
  readonly length: number;
}

/**
 * The extents of the client's node from `offset` on, at least one, up to `length` bytes. A node that cannot tell, or
 * fails to, is all data.
 */
export async function allocationExtents(client: EngineClient, range: Range): Promise<AllocationExtent[]> {
  const { node } = client;
  if (range.length > 0 && canTellStatus(node.engine)) {
    return engineExtents(client, range);
  }
  const place = fileBelow(node.engine, range.offset);
  return place === undefined || range.length === 0
    ? [{ length: range.length, hole: false, zero: false }]
    : fileExtents(node, place.fd, { offset: place.offset, length: range.length });
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

async function engineExtents(client: EngineClient, { offset, length }: Range): Promise<AllocationExtent[]> {
  const list = new Uint32Array(extentsMax * (extentBytes / Uint32Array.BYTES_PER_ELEMENT));
  const request = { offset, length, address: addressOf(list), addressBytes: list.byteLength };
  try {
    await client.request({ op: BlockOp.STATUS, ...request });
  } catch {
    // Reading tells what is wrong, if anything is.
    return [{ length, hole: false, zero: false }];
  }
  return wholeExtents(list, client.node.limits.requestAlignment);
}

function fileExtents(node: BlockNode, fd: number, range: Range): AllocationExtent[] {
  const end = range.offset + range.length;
  const extents: AllocationExtent[] = [];
  let at = range.offset;
  while (at < end && extents.length < extentsMax) {
    const data = firstData(fd, at, end, node.limits.requestAlignment);
    if (data > at) {
      extents.push({ length: data - at, hole: true, zero: true });
      at = data;
      continue;
    }
    const hole = seekFile(fd, 'hole', at);
    const next = hole <= at ? end : Math.min(end, alignUp(hole, node.limits.requestAlignment));
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
function firstData(fd: number, at: number, end: number, alignment: number): number {
  const found = seekFile(fd, 'data', at);
  if (found === -Errno.ENXIO) {
    return end;
  }
  return found < at ? at : Math.min(end, Math.max(at, found - (found % alignment)));
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
