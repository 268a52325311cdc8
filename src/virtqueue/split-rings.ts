/**
 * The three parts of a split virtqueue (virtio 1.3, 2.7) as typed arrays over the memory they lie in: the
 * same for the device's side and for the driver's.
 */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { type GuestMemory, MemoryAccess } from '../memory/guest-memory.js';
import { viewMemory } from '../native/ffi.js';
import { AVAIL, availableRingBytes, DESC, descriptorTableBytes, USED, usedRingBytes } from './layout.js';

export interface SplitRingsConfig {
  /** Elements, a power of two. */
  readonly size: number;
  /** Guest addresses of the three parts. */
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
}

export interface SplitRings {
  readonly table: DataView;
  readonly avail16: Uint16Array;
  readonly used16: Uint16Array;
  readonly used32: Uint32Array;
  /** Where the event indices are: `used_event` in `avail16`, `avail_event` in `used16`. */
  readonly usedEvent16: number;
  readonly availEvent16: number;
}

function locatePart(
  memory: GuestMemory,
  what: string,
  range: { address: number; length: number; alignment: number; access: MemoryAccess },
): ArrayBuffer {
  const host = memory.translate(range.address, range.length, range.access);
  if (host === 0) {
    throw new VduseError(
      'PROTOCOL',
      `${what} at ${range.address}: its ${range.length} bytes do not lie in mapped memory`,
    );
  }
  // Also the host address: a front-end may map its memory anywhere, and atomics want their alignment.
  if (range.address % range.alignment !== 0 || host % range.alignment !== 0) {
    throw new VduseError('PROTOCOL', `${what} at ${range.address}: not aligned to ${range.alignment} bytes`);
  }
  return viewMemory(host, range.length);
}

/**
 * Finds the parts. `driverPartsAccess` is what this side does with the descriptor table and the available
 * ring; the used ring is read and written by both. Throws PROTOCOL where the size is none that 2.7 allows or
 * a part is not in memory that may be used so.
 */
export function locateSplitRings(
  config: SplitRingsConfig,
  memory: GuestMemory,
  driverPartsAccess: MemoryAccess,
): SplitRings {
  const size = config.size;
  if (!Number.isInteger(size) || size < 1 || size > limits.queueSizeMax || (size & (size - 1)) !== 0) {
    throw new VduseError(
      'PROTOCOL',
      `virtqueue of ${size} elements: must be a power of two up to ${limits.queueSizeMax}`,
    );
  }
  const table = locatePart(memory, 'descriptor table', {
    address: config.descriptorAddress,
    length: descriptorTableBytes(size),
    alignment: DESC.alignment,
    access: driverPartsAccess,
  });
  const avail = locatePart(memory, 'available ring', {
    address: config.driverAddress,
    length: availableRingBytes(size),
    alignment: AVAIL.alignment,
    access: driverPartsAccess,
  });
  const used = locatePart(memory, 'used ring', {
    address: config.deviceAddress,
    length: usedRingBytes(size),
    alignment: USED.alignment,
    access: MemoryAccess.READ_WRITE,
  });
  return {
    table: new DataView(table),
    avail16: new Uint16Array(avail),
    used16: new Uint16Array(used),
    used32: new Uint32Array(used, 0, USED.ring32 + 2 * size),
    usedEvent16: AVAIL.ring16 + size,
    availEvent16: 2 * USED.ring32 + 4 * size,
  };
}
