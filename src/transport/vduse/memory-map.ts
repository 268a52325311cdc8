/** The device's memory: what the IOTLB names, mapped into this process. */

import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import type { MemoryAccess, MemoryRegion } from '../../memory/guest-memory.js';
import { closeFd } from '../../native/fd.js';
import { mapFile, unmap } from '../../native/memory.js';
import { VduseAccess } from '../../native/vduse-abi.js';
import type { VduseDeviceFile } from './device-file.js';

const lastAddress = 0xffff_ffff_ffff_ffffn;
/** Beyond it an address is no double's integer; no driver has been seen to map there. */
const addressLimit = 1n << 53n;

export class VduseMemoryMap {
  readonly regions: readonly MemoryRegion[];

  private constructor(regions: readonly MemoryRegion[]) {
    this.regions = regions;
  }

  /** Maps everything that the device's IOTLB has now. The caller unmaps it with `close`. */
  static read(file: VduseDeviceFile): VduseMemoryMap {
    const regions: MemoryRegion[] = [];
    try {
      let start = 0n;
      while (start < addressLimit) {
        const entry = file.iotlbMap({ start, last: lastAddress });
        if (entry === undefined) {
          return new VduseMemoryMap(regions);
        }
        const { fd, offset, access } = entry;
        const length = Number(entry.last - entry.start) + 1;
        try {
          if (
            regions.length === limits.memoryRegionsMax ||
            entry.last >= addressLimit ||
            entry.last < entry.start
          ) {
            throw new VduseError(
              'PROTOCOL',
              `the memory map of '${file.name}' has too many ranges, or one beyond 2^53`,
            );
          }
          const hostAddress = mapFile({
            fd,
            length,
            offset,
            readable: (access & VduseAccess.RO) !== 0,
            writable: (access & VduseAccess.WO) !== 0,
          });
          regions.push({ start: Number(entry.start), length, hostAddress, access: access as MemoryAccess });
        } finally {
          // The map holds its file; the descriptor is not needed any more.
          closeFd(fd);
        }
        start = entry.last + 1n;
      }
      return new VduseMemoryMap(regions);
    } catch (error) {
      new VduseMemoryMap(regions).close();
      throw error;
    }
  }

  /** Unmaps it all. Nothing in flight may touch it any more. */
  close(): void {
    for (const region of this.regions) {
      unmap(region.hostAddress, region.length);
    }
  }
}
