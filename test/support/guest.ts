/** Memory for tests that plays the guest's: one host map, from which regions are placed at any guest address. */
import type { MemoryAccess, MemoryRegion } from '../../src/memory/guest-memory.js';
import { viewBytes } from '../../src/native/fd.js';
import { mapAnonymous, mapFile, unmap } from '../../src/native/memory.js';

export class TestGuest {
  readonly hostAddress: number;
  readonly length: number;
  /** All of it. Invalid after `close`. */
  readonly bytes: Uint8Array;
  readonly view: DataView;

  /** Memory of the process, or a file's. */
  constructor(length: number, fd?: number) {
    this.length = length;
    this.hostAddress =
      fd === undefined
        ? mapAnonymous(length)
        : mapFile({ fd, length, offset: 0, readable: true, writable: true });
    this.bytes = viewBytes(this.hostAddress, length);
    this.view = new DataView(this.bytes.buffer);
  }

  /** A region at guest address `start` whose memory begins `offset` bytes into the map. */
  region(place: { start: number; offset: number; length: number; access: MemoryAccess }): MemoryRegion {
    const { start, offset, length, access } = place;
    return { start, length, hostAddress: this.hostAddress + offset, access };
  }

  /** The bytes behind a host address, which must lie in the map. */
  at(hostAddress: number, length: number): Uint8Array {
    const offset = hostAddress - this.hostAddress;
    if (offset < 0 || offset + length > this.length) {
      throw new RangeError(`host range 0x${hostAddress.toString(16)}+${length} is outside the test's memory`);
    }
    return this.bytes.subarray(offset, offset + length);
  }

  close(): void {
    unmap(this.hostAddress, this.length);
  }
}

/** The naive opposite of GuestMemory, in BigInt and without any cache: what a range means, piece by piece. */
export interface NaivePiece {
  readonly region: MemoryRegion;
  readonly hostAddress: number;
  readonly length: number;
}

export function naiveRegionAt(
  regions: readonly MemoryRegion[],
  address: number | bigint,
): MemoryRegion | undefined {
  const wanted = BigInt(address);
  return regions.find(
    (region) => wanted >= BigInt(region.start) && wanted < BigInt(region.start) + BigInt(region.length),
  );
}

/** The pieces of a range that may be used for `access`, or undefined where a byte of it may not. */
export function naivePieces(
  regions: readonly MemoryRegion[],
  range: { address: bigint; length: number },
  access: MemoryAccess,
): NaivePiece[] | undefined {
  const pieces: NaivePiece[] = [];
  let address = range.address;
  let left = BigInt(range.length);
  while (left > 0n) {
    const region = naiveRegionAt(regions, address);
    if (region === undefined || (region.access & access) !== access) {
      return undefined;
    }
    const offset = address - BigInt(region.start);
    const room = BigInt(region.length) - offset;
    const length = left < room ? left : room;
    pieces.push({ region, hostAddress: region.hostAddress + Number(offset), length: Number(length) });
    address += length;
    left -= length;
  }
  return pieces;
}
