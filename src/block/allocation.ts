/** Which parts of a node hold data, as far as that can be asked without reading them. */
import { Errno } from '../native/errno.js';
import { seekFile } from '../native/fd.js';
import type { EngineSpec } from './engine.js';
import type { BlockNode } from './node.js';

export interface AllocationExtent {
  /** Bytes. */
  readonly length: number;
  /** Nothing is allocated there: it reads as zeroes. */
  readonly hole: boolean;
}

/** Extents of one answer: whoever wants more asks again from where they end. */
const extentsMax = 1024;

/**
 * The extents from `offset` on, at least one, up to `length` bytes. A node that
 * cannot tell is all data.
 */
export function allocationExtents(
  node: BlockNode,
  range: { readonly offset: number; readonly length: number },
): AllocationExtent[] {
  const place = fileBelow(node.engine, range.offset);
  if (place === undefined || range.length === 0) {
    return [{ length: range.length, hole: false }];
  }
  const { fd } = place;
  const end = place.offset + range.length;
  const extents: AllocationExtent[] = [];
  let at = place.offset;
  while (at < end && extents.length < extentsMax) {
    const data = firstData(fd, at, end, node.limits.requestAlignment);
    if (data > at) {
      extents.push({ length: data - at, hole: true });
      at = data;
      continue;
    }
    const hole = seekFile(fd, 'hole', at);
    const next = hole <= at ? end : Math.min(end, alignUp(hole, node.limits.requestAlignment));
    extents.push({ length: next - at, hole: false });
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
