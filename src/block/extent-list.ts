/**
 * The answer to BlockOp.STATUS, as an engine writes it into the request's payload: pairs of 32-bit words, a length in
 * bytes and ExtentFlag bits, from the request's offset on without gaps. A length of 0 ends a list that is shorter
 * than its room. It may cover less than was asked for.
 */

export const ExtentFlag = { HOLE: 1, ZERO: 2 } as const;

export const extentBytes = 8;

export interface AllocationExtent {
  /** Bytes. */
  readonly length: number;
  /** Nothing is allocated there. */
  readonly hole: boolean;
  /** It reads as zeroes. */
  readonly zero: boolean;
}

interface State {
  readonly hole: boolean;
  readonly zero: boolean;
}

/** Both are true of a block only where they are true of all of it. */
const everything: State = { hole: true, zero: true };
const data: State = { hole: false, zero: false };

/**
 * The extents of a list in whole blocks, at least one, neighbours of one state joined. A block that several extents
 * share counts as what is true of all of them; one that the list ends in the middle of is left out.
 */
export function wholeExtents(list: Uint32Array, blockBytes: number): AllocationExtent[] {
  const extents: AllocationExtent[] = [];
  const emit = (length: number, { hole, zero }: State): void => {
    const last = extents.at(-1);
    if (last !== undefined && last.hole === hole && last.zero === zero) {
      extents[extents.length - 1] = { length: last.length + length, hole, zero };
    } else if (length > 0) {
      extents.push({ length, hole, zero });
    }
  };
  // The bytes that are known of the block that is not whole yet, and what is true of them.
  let partial = 0;
  let shared = everything;
  for (let n = 0; n + 1 < list.length && list[n] !== 0; n += 2) {
    const flags = list[n + 1];
    const state = { hole: (flags & ExtentFlag.HOLE) !== 0, zero: (flags & ExtentFlag.ZERO) !== 0 };
    let length = list[n];
    if (partial > 0) {
      const part = Math.min(length, blockBytes - partial);
      shared = { hole: shared.hole && state.hole, zero: shared.zero && state.zero };
      partial += part;
      length -= part;
      if (partial < blockBytes) {
        continue;
      }
      emit(blockBytes, shared);
    }
    partial = length % blockBytes;
    shared = state;
    emit(length - partial, state);
  }
  if (extents.length === 0) {
    emit(blockBytes, data);
  }
  return extents;
}
