/**
 * The IOMMU of one device, in software. Streaming buffers are copied through a bounce region at the bottom of
 * the address space; rings live in coherent memory above it; memory that is shared with the device anyway is
 * mapped as it is, above both. The device's side maps all of it through the descriptors that the IOTLB gives.
 */
import { VduseError } from '../base/errors.js';
import { PageAllocator } from '../memory/page-allocator.js';
import { closeFd } from '../native/fd.js';
import { copyMemory, createMemoryFile, fillZeroes, mapFile, unmap } from '../native/memory.js';
import { Iotlb, type IotlbMap } from './iotlb.js';
import type { VduseTrace } from './trace.js';

/** The unit of IO virtual addresses. Not the machine's page: nothing is mapped in parts of it. */
const iovaPageBytes = 4096;
export const bounceBytesDefault = 64 << 20;
export const bounceBytesMin = 1 << 20;
export const bounceBytesMax = 1 << 30;
/** Room for rings, from bounceBytesMax on, as Linux has it. */
const coherentBytes = 128 << 20;
const sharedStart = bounceBytesMax + coherentBytes;

/** As the DMA API names them: from the driver's memory to the device, or back. */
export type DmaDirection = 'to-device' | 'from-device';

export interface SharedMemory {
  readonly iova: number;
  readonly hostAddress: number;
  readonly length: number;
}

interface SharedRange extends SharedMemory {
  readonly fd: number;
}

function pagesOf(length: number): number {
  return Math.ceil(length / iovaPageBytes);
}

export class IovaDomain {
  readonly bounceBytes: number;
  readonly iotlb: Iotlb;
  /** The domain's memory: offsets in it are IO virtual addresses. Untouched pages take nothing. */
  readonly #fd: number;
  readonly #base: number;
  readonly #bouncePages: PageAllocator;
  readonly #coherentPages = new PageAllocator(pagesOf(coherentBytes));
  #bounceMapped = false;
  /** Where bounced bytes go: the domain's own memory, or what the device registered in its place. */
  #bounceAddress: number;
  #shared: SharedRange[] = [];
  #nextShared = sharedStart;
  /** Bytes that were copied to or from the bounce region since the start. */
  bytesCopied = 0;

  /** Throws INVALID_ARGUMENT for a size out of range, SYSTEM_CALL where memory lacks. */
  constructor(bounceBytes: number = bounceBytesDefault, trace?: VduseTrace) {
    if (bounceBytes < bounceBytesMin || bounceBytes > bounceBytesMax || bounceBytes % iovaPageBytes !== 0) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `bounce region of ${bounceBytes} bytes: it must be from ${bounceBytesMin} to ${bounceBytesMax}, in pages of ${iovaPageBytes}`,
      );
    }
    this.bounceBytes = bounceBytes;
    this.iotlb = new Iotlb(trace);
    this.#bouncePages = new PageAllocator(pagesOf(bounceBytes));
    // Address 0 says that there is none.
    this.#bouncePages.allocate(1);
    this.#fd = createMemoryFile('vduse-domain', sharedStart);
    try {
      this.#base = mapFile({ fd: this.#fd, length: sharedStart, offset: 0, readable: true, writable: true });
    } catch (error) {
      closeFd(this.#fd);
      throw error;
    }
    this.#bounceAddress = this.#base;
  }

  // Streaming maps

  /**
   * Maps a buffer for one request. What the device is to read is copied now. Returns the IO virtual address,
   * or 0 where the bounce region is full: the caller waits until something is unmapped.
   */
  mapBuffer(hostAddress: number, length: number, direction: DmaDirection): number {
    const shared = this.#sharedIova(hostAddress, length);
    if (shared !== 0) {
      return shared;
    }
    const page = this.#bouncePages.allocate(pagesOf(length));
    if (page < 0) {
      return 0;
    }
    this.#mapBounce();
    const iova = page * iovaPageBytes;
    if (direction === 'to-device') {
      copyMemory(this.#bounceAddress + iova, hostAddress, length);
      this.bytesCopied += length;
    }
    return iova;
  }

  /** Ends a map that mapBuffer made with the same arguments. What the device wrote is copied now. */
  unmapBuffer(iova: number, hostAddress: number, length: number, direction: DmaDirection): void {
    if (iova >= this.bounceBytes) {
      return;
    }
    if (direction === 'from-device') {
      copyMemory(hostAddress, this.#bounceAddress + iova, length);
      this.bytesCopied += length;
    }
    this.#bouncePages.free(iova / iovaPageBytes, pagesOf(length));
  }

  /** Bytes that one streaming map can have at the most. */
  get mapBytesMax(): number {
    return this.bounceBytes - iovaPageBytes;
  }

  // Coherent memory

  /** Memory that both sides see at once, zeroed. Throws SYSTEM_CALL-like ENOSPC as INVALID_ARGUMENT when there is none. */
  allocateCoherent(length: number): { iova: number; hostAddress: number } {
    const page = this.#coherentPages.allocate(pagesOf(length));
    if (page < 0) {
      throw new VduseError('INVALID_ARGUMENT', `no coherent memory of ${length} bytes is left in the domain`);
    }
    const iova = bounceBytesMax + page * iovaPageBytes;
    this.iotlb.add({ start: iova, length, fd: this.#fd, offset: iova, access: 3 });
    fillZeroes(this.#base + iova, length);
    return { iova, hostAddress: this.#base + iova };
  }

  freeCoherent(iova: number, length: number): void {
    this.iotlb.remove(iova, iova + length - 1);
    this.#coherentPages.free((iova - bounceBytesMax) / iovaPageBytes, pagesOf(length));
  }

  // Shared memory: no copy

  /**
   * Makes memory that requests use again and again, and that the device sees as it is: buffers inside it are
   * never bounced. Zeroed, page aligned; `removeShared` ends it.
   */
  addShared(length: number): SharedMemory {
    const fd = createMemoryFile('vduse-shared', length);
    let hostAddress = 0;
    try {
      hostAddress = mapFile({ fd, length, offset: 0, readable: true, writable: true });
      const iova = this.#nextShared;
      this.iotlb.add({ start: iova, length, fd, offset: 0, access: 3 });
      this.#nextShared += pagesOf(length) * iovaPageBytes;
      const range = { iova, hostAddress, length, fd };
      this.#shared = [...this.#shared, range];
      return range;
    } catch (error) {
      if (hostAddress !== 0) {
        unmap(hostAddress, length);
      }
      closeFd(fd);
      throw error;
    }
  }

  /** Takes shared memory out of the map, before the device is told (UPDATE_IOTLB): nothing new finds it. */
  forgetShared(memory: SharedMemory): void {
    this.iotlb.remove(memory.iova, memory.iova + memory.length - 1);
  }

  /** No request uses it any more, and the device has been told. */
  removeShared(memory: SharedMemory): void {
    const range = this.#shared.find((other) => other.iova === memory.iova);
    if (range !== undefined) {
      this.#shared = this.#shared.filter((other) => other !== range);
      this.iotlb.remove(range.iova, range.iova + range.length - 1);
      unmap(range.hostAddress, range.length);
      closeFd(range.fd);
    }
  }

  // Direct maps

  /** Replaces the whole map by ranges of the caller's own files, as vhost-vdpa does. */
  setMaps(maps: readonly IotlbMap[]): void {
    this.iotlb.remove(0, Number.MAX_SAFE_INTEGER);
    this.#bounceMapped = false;
    try {
      for (const map of maps) {
        this.iotlb.add(map);
      }
    } catch (error) {
      // A part of a map is none.
      this.iotlb.remove(0, Number.MAX_SAFE_INTEGER);
      throw error;
    }
  }

  // What the device's ioctls ask for

  /** Whether a map is the bounce region, whose memory the device may replace. */
  isBounceRegion(map: IotlbMap): boolean {
    return this.#bounceMapped && map.start === 0 && map.length === this.bounceBytes;
  }

  get bounceMapped(): boolean {
    return this.#bounceMapped;
  }

  /** Bounced bytes go to the device's own memory from now on; what is in flight moves there. */
  replaceBounce(address: number): void {
    copyMemory(address, this.#bounceAddress, this.bounceBytes);
    this.#bounceAddress = address;
  }

  /** Bounced bytes go to the domain's memory again. */
  restoreBounce(): void {
    copyMemory(this.#base, this.#bounceAddress, this.bounceBytes);
    this.#bounceAddress = this.#base;
  }

  /** A reset takes the bounce region away until its next use. */
  resetBounce(): void {
    if (this.#bounceMapped) {
      this.iotlb.remove(0, this.bounceBytes - 1);
      this.#bounceMapped = false;
    }
  }

  /** Unmaps and closes everything. Views of its memory must not be used any more. */
  close(): void {
    for (const range of [...this.#shared]) {
      this.removeShared(range);
    }
    unmap(this.#base, sharedStart);
    closeFd(this.#fd);
  }

  #mapBounce(): void {
    if (!this.#bounceMapped) {
      this.iotlb.add({ start: 0, length: this.bounceBytes, fd: this.#fd, offset: 0, access: 3 });
      this.#bounceMapped = true;
    }
  }

  #sharedIova(hostAddress: number, length: number): number {
    for (const range of this.#shared) {
      const offset = hostAddress - range.hostAddress;
      if (offset >= 0 && offset + length <= range.length) {
        return range.iova + offset;
      }
    }
    return 0;
  }
}
