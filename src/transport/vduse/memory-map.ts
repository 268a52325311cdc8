/** The device's memory: what the IOTLB names, mapped into this process. */
import { fstatSync } from 'node:fs';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import type { MemoryAccess, MemoryRegion } from '../../memory/guest-memory.js';
import { closeFd } from '../../native/fd.js';
import { mapFile, unmap } from '../../native/memory.js';
import { type GuardedMemory, guardMemory } from '../../native/sigbus-guard.js';
import { VduseAccess, type VduseIotlbEntry } from '../../native/vduse-abi.js';
import type { VduseDeviceFile } from './device-file.js';

const lastAddress = 0xffff_ffff_ffff_ffffn;
/** Beyond it an address is no double's integer; no driver has been seen to map there. */
const addressLimit = 1n << 53n;

interface MappedRegion {
  readonly region: MemoryRegion;
  /** Of a map whose file another process can cut short under us. */
  readonly guard: GuardedMemory | undefined;
}

/**
 * The bounce buffers of the kernel's are its own and stay. With vhost-vdpa the driver is a program, and its memory
 * a file of its own.
 */
function guardFile(fd: number, map: { address: number; length: number }): GuardedMemory | undefined {
  return fstatSync(fd).isFile() ? guardMemory(map) : undefined;
}

export class VduseMemoryMap {
  readonly #file: VduseDeviceFile;
  readonly #mapped = new Map<bigint, MappedRegion>();

  constructor(file: VduseDeviceFile) {
    this.#file = file;
  }

  get regions(): readonly MemoryRegion[] {
    return [...this.#mapped.values()].map(({ region }) => region);
  }

  /** What is wrong with a range whose file has become shorter under us; undefined as long as nobody has met it. */
  get damage(): string | undefined {
    const found = [...this.#mapped.values()].find(({ guard }) => guard?.damaged);
    return (
      found &&
      `the ${found.region.length} bytes of memory at 0x${found.region.start.toString(16)}: their file was cut short while it was in use`
    );
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
        if (!this.#mapped.has(entry.start)) {
          this.#mapped.set(entry.start, this.#map(entry));
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
    for (const { region, guard } of this.#mapped.values()) {
      guard?.release();
      unmap(region.hostAddress, region.length);
    }
    this.#mapped.clear();
  }

  #map(entry: VduseIotlbEntry & { fd: number }): MappedRegion {
    const { fd, offset, access } = entry;
    if (
      this.#mapped.size === limits.memoryRegionsMax ||
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
    const region = { start: Number(entry.start), length, hostAddress, access: access as MemoryAccess };
    try {
      return { region, guard: guardFile(fd, { address: hostAddress, length }) };
    } catch (error) {
      unmap(hostAddress, length);
      throw error;
    }
  }
}
