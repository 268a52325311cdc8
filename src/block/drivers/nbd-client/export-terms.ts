/** What a node has promised to its users of an export, and whether a server still keeps it after a reconnection. */
import { TransmissionFlag } from '../../../base/nbd-protocol.js';
import type { NbdExportInfo } from './handshake.js';

export interface ExportTerms {
  /** Bytes. */
  readonly size: number;
  /** TransmissionFlag bits. */
  readonly flags: number;
  readonly minimumBlockSize: number;
  readonly payloadBytesMax: number;
}

/** Abilities that requests make use of. */
const abilities =
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_TRIM |
  TransmissionFlag.SEND_WRITE_ZEROES;

export function isCompatible(info: NbdExportInfo, terms: ExportTerms): boolean {
  const needed = terms.flags & abilities;
  const becameReadOnly = (info.flags & ~terms.flags & TransmissionFlag.READ_ONLY) !== 0;
  return (
    info.size >= terms.size &&
    (info.flags & needed) === needed &&
    !becameReadOnly &&
    info.minimumBlockSize <= terms.minimumBlockSize &&
    info.payloadBytesMax >= terms.payloadBytesMax
  );
}
