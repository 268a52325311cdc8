// Hot file: translate and locate are synchronous, allocate nothing and do not throw.
/**
 * Guest memory: from the addresses that descriptors hold (IOVA with VDUSE, guest-physical with vhost-user)
 * to host addresses. Addresses are numbers below 2^53; a host address of 0 means unmapped or forbidden.
 */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { viewMemory } from '../native/ffi.js';

export const MemoryAccess = { READ: 1, WRITE: 2, READ_WRITE: 3 } as const;
export type MemoryAccess = (typeof MemoryAccess)[keyof typeof MemoryAccess];

/** One mapped range, plain data, so that it crosses threads: all of them share the process's address space. */
export interface MemoryRegion {
  /** First guest address. */
  readonly start: number;
  /** Bytes. */
  readonly length: number;
  readonly hostAddress: number;
  readonly access: MemoryAccess;
}

/** Views are at most 4 GiB long (Node 20 aborts beyond) and start every 2 GiB, so that they overlap. */
const viewStride = 2 ** 31;
const viewLengthMax = 2 ** 32;

interface MappedRegion extends MemoryRegion {
  readonly end: number;
  /** One per stride, made when first needed. */
  readonly views: (DataView | undefined)[];
}

/** `known`: regions whose views are used again. A view counts as memory of its length, which calls the garbage collector. */
function validate(regions: readonly MemoryRegion[], known: readonly MappedRegion[]): MappedRegion[] {
  if (regions.length > limits.memoryRegionsMax) {
    throw new VduseError(
      'PROTOCOL',
      `memory map of ${regions.length} regions: at most ${limits.memoryRegionsMax} are taken`,
    );
  }
  const sorted = [...regions].sort((a, b) => a.start - b.start);
  let previousEnd = 0;
  let next = 0;
  return sorted.map((region) => {
    const end = region.start + region.length;
    const whole = Number.isSafeInteger(region.start) && Number.isSafeInteger(end) && region.length > 0;
    if (!whole || region.start < previousEnd) {
      throw new VduseError(
        'PROTOCOL',
        `memory region of ${region.length} bytes at ${region.start} is empty, too large or overlaps another`,
      );
    }
    previousEnd = end;
    // Both lists are sorted.
    while (next < known.length && known[next].start < region.start) {
      next++;
    }
    return next < known.length && isSame(known[next], region)
      ? known[next]
      : { ...region, end, views: new Array(Math.ceil(region.length / viewStride)) };
  });
}

function isSame(a: MemoryRegion, b: MemoryRegion): boolean {
  return (
    a.start === b.start && a.length === b.length && a.hostAddress === b.hostAddress && a.access === b.access
  );
}

export class GuestMemory {
  #mapped: readonly MappedRegion[];
  /** The region of the last hit: requests of one queue tend to stay in one. */
  #last: MappedRegion | undefined;
  /** Where `locate` found its address in the view that it returned. */
  locatedOffset = 0;

  /** Throws PROTOCOL for overlapping, empty or too many regions. The maps stay their owner's. */
  constructor(regions: readonly MemoryRegion[]) {
    this.#mapped = validate(regions, []);
  }

  /** Takes another set of regions. The old ones are still mapped: views of them may be in use. Throws as above. */
  update(regions: readonly MemoryRegion[]): void {
    this.#mapped = validate(regions, this.#mapped);
    this.#last = undefined;
  }

  /** The host address of a range that lies in one region and may be used in this way; 0 otherwise. */
  translate(address: number, length: number, access: MemoryAccess): number {
    const region = this.#find(address);
    if (region === undefined || address + length > region.end || (region.access & access) !== access) {
      return 0;
    }
    return region.hostAddress + (address - region.start);
  }

  /**
   * Bytes from this address to its region's end; 0 where nothing is mapped. A buffer may legally cross from
   * one region into an adjacent one, whose host memory is elsewhere.
   */
  contiguousLength(address: number): number {
    const region = this.#find(address);
    return region === undefined ? 0 : region.end - address;
  }

  /** A view for code that reads or writes a small structure itself; its offset there is `locatedOffset`. */
  locate(address: number, length: number, access: MemoryAccess): DataView | undefined {
    const region = this.#find(address);
    if (
      region === undefined ||
      length > viewStride ||
      address + length > region.end ||
      (region.access & access) !== access
    ) {
      return undefined;
    }
    const offset = address - region.start;
    const index = Math.floor(offset / viewStride);
    this.locatedOffset = offset - index * viewStride;
    return region.views[index] ?? this.#makeView(region, index);
  }

  #find(address: number): MappedRegion | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address < last.end) {
      return last;
    }
    let low = 0;
    let high = this.#mapped.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const region = this.#mapped[middle];
      if (address < region.start) {
        high = middle - 1;
      } else if (address >= region.end) {
        low = middle + 1;
      } else {
        this.#last = region;
        return region;
      }
    }
    return undefined;
  }

  #makeView(region: MappedRegion, index: number): DataView {
    const offset = index * viewStride;
    const length = Math.min(region.length - offset, viewLengthMax);
    const view = new DataView(viewMemory(region.hostAddress + offset, length));
    region.views[index] = view;
    return view;
  }
}
