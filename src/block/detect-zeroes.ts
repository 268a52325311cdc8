// Hot file: synchronous, no allocation, no throw.
/** QEMU's detect-zeroes: a write of nothing but zeroes becomes a write-zeroes, which stores nothing. */
import { isZero } from '../native/memory.js';
import { BlockFlag, BlockOp } from './engine.js';
import type { DetectZeroes } from './node.js';
import type { RequestTable } from './request-table.js';

export function detectZeroWrite(table: RequestTable, slot: number, mode: DetectZeroes): void {
  if (mode === 'off' || table.op[slot] !== BlockOp.WRITE) {
    return;
  }
  for (let n = 0; n < table.segmentCount[slot]; n++) {
    if (!isZero(table.segmentAddress(slot, n), table.segmentLength(slot, n))) {
      return;
    }
  }
  table.op[slot] = BlockOp.WRITE_ZEROES;
  table.flags[slot] |= mode === 'unmap' ? BlockFlag.MAY_UNMAP : 0;
}
