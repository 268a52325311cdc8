/** An export under the name by which clients find it, and what it offers them. */
import { VduseError } from '../base/errors.js';
import { TransmissionFlag } from '../base/nbd-protocol.js';
import type { NbdExport } from './nbd-export.js';
import { nbdLimits } from './nbd-limits.js';

export interface NbdExportOptions {
  /** What clients ask for. The empty name is the export of those who ask for none. */
  readonly name: string;
  readonly target: NbdExport;
  /** Shown to people who list exports. */
  readonly description?: string;
  /** No client may write, whatever the export can do. */
  readonly readOnly?: boolean;
}

/** An export as a client sees it: frozen when it was added, so that what is negotiated stays true. */
export interface ServedExport {
  readonly name: string;
  readonly description: string;
  readonly target: NbdExport;
  readonly readOnly: boolean;
  readonly blockSizes: NbdExport['blockSizes'];
  /** A write with FUA is a write and then a flush. */
  readonly flushesForFua: boolean;
}

/** Checks what the server's owner hands in. Throws INVALID_ARGUMENT. */
export function serveExport(options: NbdExportOptions): ServedExport {
  const { name, target, description = '' } = options;
  checkString('name', name);
  checkString('description', description);
  checkSizes(name, target);
  return {
    name,
    description,
    target,
    readOnly: options.readOnly === true || target.prepareWrite === undefined,
    blockSizes: { ...target.blockSizes },
    flushesForFua: !target.fua && target.flush !== undefined,
  };
}

/** "Transmission flags". A read-only export offers nothing that changes it. */
export function transmissionFlags(served: ServedExport, structuredReplies: boolean): number {
  const { target } = served;
  const writable = !served.readOnly;
  let flags: number = TransmissionFlag.HAS_FLAGS;
  const offer = (condition: boolean, flag: number): void => {
    flags |= condition ? flag : 0;
  };
  offer(served.readOnly, TransmissionFlag.READ_ONLY);
  offer(target.flush !== undefined, TransmissionFlag.SEND_FLUSH);
  offer(target.fua || target.flush !== undefined, TransmissionFlag.SEND_FUA);
  offer(writable && target.trim !== undefined, TransmissionFlag.SEND_TRIM);
  offer(writable && target.writeZeroes !== undefined, TransmissionFlag.SEND_WRITE_ZEROES);
  offer(
    writable && target.writeZeroes !== undefined && target.fastZero === true,
    TransmissionFlag.SEND_FAST_ZERO,
  );
  offer(structuredReplies, TransmissionFlag.SEND_DF);
  offer(target.multiConn, TransmissionFlag.CAN_MULTI_CONN);
  offer(target.cache !== undefined, TransmissionFlag.SEND_CACHE);
  return flags;
}

function checkString(what: string, text: string): void {
  if (
    Buffer.byteLength(text) > nbdLimits.stringBytesMax ||
    text.includes('\0') ||
    Buffer.from(text).toString() !== text
  ) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `NBD export: its ${what} must have at most ${nbdLimits.stringBytesMax} bytes of UTF-8 and no NUL`,
    );
  }
}

function isPowerOfTwo(value: number): boolean {
  return Number.isInteger(value) && value > 0 && value <= 2 ** 31 && (value & (value - 1)) === 0;
}

/** "Size constraints". */
function checkSizes(name: string, target: NbdExport): void {
  const { minimum, preferred, maximum } = target.blockSizes;
  const refuse = (what: string): never => {
    throw new VduseError('INVALID_ARGUMENT', `NBD export ${JSON.stringify(name)}: ${what}`);
  };
  if (!isPowerOfTwo(minimum) || minimum > nbdLimits.minimumBlockSizeMax) {
    refuse(`minimum block size ${minimum}: must be a power of two up to ${nbdLimits.minimumBlockSizeMax}`);
  }
  if (!isPowerOfTwo(preferred) || preferred < Math.max(minimum, 512)) {
    refuse(`preferred block size ${preferred}: must be a power of two, at least 512 and the minimum`);
  }
  const inRange = maximum >= preferred && maximum <= nbdLimits.payloadBytesMax;
  if (!Number.isInteger(maximum) || !inRange || maximum % minimum !== 0) {
    refuse(
      `maximum payload ${maximum}: must be a multiple of the minimum, from the preferred block size to 32 MiB`,
    );
  }
  if (!Number.isSafeInteger(target.size) || target.size < 0 || target.size % minimum !== 0) {
    refuse(`size ${target.size}: must be a multiple of the minimum block size, ${minimum}`);
  }
}
