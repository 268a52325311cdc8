/** An export's extents as "NBD_REPLY_TYPE_BLOCK_STATUS" may tell them. */

import { CommandFlag } from '../base/nbd-protocol.js';
import type { NbdExtent } from './nbd-export.js';
import { nbdLimits } from './nbd-limits.js';
import type { Request } from './request.js';

/**
 * Joins extents of the same state, and cuts what is beyond the request or beyond the bounds. Where nothing is left
 * the range counts as data, which is always true enough.
 */
export function extentsForReply(extents: readonly NbdExtent[], request: Request): NbdExtent[] {
  const countMax = request.has(CommandFlag.REQ_ONE) ? 1 : nbdLimits.extentsMax;
  const told: NbdExtent[] = [];
  let covered = 0;
  for (const { length, hole, zero } of extents) {
    const counted = Math.min(length, request.length - covered);
    if (counted <= 0) {
      break;
    }
    const last = told.at(-1);
    if (last !== undefined && last.hole === hole && last.zero === zero) {
      told[told.length - 1] = { length: last.length + counted, hole, zero };
    } else if (told.length === countMax) {
      break;
    } else {
      told.push({ length: counted, hole, zero });
    }
    covered += counted;
  }
  return told.length > 0 ? told : [{ length: request.length, hole: false, zero: false }];
}
