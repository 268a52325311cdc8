/** The device's memory: what the IOTLB names, mapped into this process. */

import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import type { MemoryAccess, MemoryRegion } from '../../memory/guest-memory.js';
import { closeFd } from '../../native/fd.js';
import { mapFile, unmap } from '../../native/memory.js';
import { VduseAccess, type VduseIotlbEntry } from '../../native/vduse-abi.js';
import type { VduseDeviceFile } from './device-file.js';

const lastAddress = 0xffff_ffff_ffff_ffffn;
/** Beyond it an address is no double's integer; no driver has been seen to map there. */
const addressLimit = 1n << 53n;

export class VduseMemoryMap {
  readonly #file: VduseDeviceFile;
  readonly #regions = new Map<bigint, MemoryRegion>();

  constructor(file: VduseDeviceFile) {
    this.#file = file;
  }

  get regions(): readonly MemoryRegion[] {
    return [...this.#regions.values()];
  }

  /**
   * Maps what the device's IOTLB has now and this map has not: Linux adds the bounce region only when its
   * first buffer is mapped, after the queues have started. What is mapped stays so until `close`.
   */
  refresh(): void {
    let start = 0n;
    while (start < addressLimit) {
      const entry = this.#file.iotlbMap({ start, last: lastAddress });
      if (entry === undefined) {
        return;
      }
      try {
        if (entry.last < start) {
          throw new VduseError('PROTOCOL', `the memory map of '${this.#file.name}' goes backwards`);
        }
        if (!this.#regions.has(entry.start)) {
          this.#regions.set(entry.start, this.#map(entry));
        }
      } finally {
        // The map holds its file; the descriptor is not needed any more.
        closeFd(entry.fd);
      }
      start = entry.last + 1n;
    }
  }

  /** Unmaps it all. Nothing in flight may touch it any more. */
  close(): void {
    for (const region of this.#regions.values()) {
      unmap(region.hostAddress, region.length);
    }
    this.#regions.clear();
  }

  #map(entry: VduseIotlbEntry & { fd: number }): MemoryRegion {
    const { fd, offset, access } = entry;
    if (
      this.#regions.size === limits.memoryRegionsMax ||
      entry.last >= addressLimit ||
      entry.last < entry.start
    ) {
      throw new VduseError(
        'PROTOCOL',
        `the memory map of '${this.#file.name}' has too many ranges, or one beyond 2^53`,
      );
    }
    const length = Number(entry.last - entry.start) + 1;
    const hostAddress = mapFile({
      fd,
      length,
      offset,
      readable: (access & VduseAccess.RO) !== 0,
      writable: (access & VduseAccess.WO) !== 0,
    });
    return { start: Number(entry.start), length, hostAddress, access: access as MemoryAccess };
  }
}
