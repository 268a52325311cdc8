/** Both sides of a split virtqueue over one piece of test memory. */
import { GuestMemory, MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { DriverVirtqueue } from '../../src/virtqueue/driver-virtqueue.js';
import { availableRingBytes, descriptorTableBytes, usedRingBytes } from '../../src/virtqueue/layout.js';
import { SplitVirtqueue, type SplitVirtqueueConfig } from '../../src/virtqueue/split-virtqueue.js';
import type { TestGuest } from './guest.js';

export interface QueuePairPlan {
  readonly size: number;
  readonly eventIdx?: boolean;
  /** Descriptors of each indirect table; 0 where INDIRECT_DESC is not negotiated. */
  readonly tableEntries?: number;
  /** Where both rings begin. */
  readonly index?: number;
}

/** The rings lie at guest addresses from here on, far from payload at low ones. */
const ringsStart = 2 ** 40 + 0x10;

export interface QueueParts {
  readonly table: MemoryRegion;
  readonly avail: MemoryRegion;
  readonly used: MemoryRegion;
  readonly indirect: MemoryRegion;
}

/** Places the parts one after the other, aligned as 2.7 wants and no better, each a region with a gap behind. */
export function placeParts(plan: QueuePairPlan, guest: TestGuest): QueueParts {
  let offset = 0;
  const place = (length: number, alignment: number, misalign: number, access: MemoryAccess): MemoryRegion => {
    const at = Math.ceil(offset / 4096) * 4096 + misalign;
    offset = at + length;
    if (offset > guest.length) {
      throw new RangeError(`the rings need ${offset} bytes of test memory`);
    }
    const start = ringsStart + Math.ceil(at / alignment) * alignment;
    return guest.region({ start, offset: at, length, access });
  };
  const { size } = plan;
  const table = place(descriptorTableBytes(size), 16, 16, MemoryAccess.READ);
  const avail = place(availableRingBytes(size), 2, 2, MemoryAccess.READ);
  const used = place(usedRingBytes(size), 4, 4, MemoryAccess.READ_WRITE);
  const indirect = place(Math.max(16, size * (plan.tableEntries ?? 0) * 16), 16, 32, MemoryAccess.READ);
  return { table, avail, used, indirect };
}

export class QueuePair {
  readonly parts: QueueParts;
  /** What the device may do, which is less than what the driver may. */
  readonly deviceRegions: readonly MemoryRegion[];
  readonly deviceMemory: GuestMemory;
  readonly deviceConfig: SplitVirtqueueConfig;
  readonly driver: DriverVirtqueue;
  readonly device: SplitVirtqueue;

  constructor(plan: QueuePairPlan, guest: TestGuest, payload: readonly MemoryRegion[] = []) {
    const parts = placeParts(plan, guest);
    const { size, eventIdx = false, tableEntries = 0, index = 0 } = plan;
    const rings = [parts.table, parts.avail, parts.used, parts.indirect];
    const own = rings.map((region) => ({ ...region, access: MemoryAccess.READ_WRITE }));
    const addresses = {
      size,
      descriptorAddress: parts.table.start,
      driverAddress: parts.avail.start,
      deviceAddress: parts.used.start,
    };
    this.parts = parts;
    this.driver = new DriverVirtqueue(
      {
        ...addresses,
        eventIdx,
        indirectTables:
          tableEntries === 0 ? undefined : { address: parts.indirect.start, entries: tableEntries },
      },
      new GuestMemory(own),
    );
    this.driver.reset(index);
    this.deviceRegions = [...rings, ...payload];
    this.deviceMemory = new GuestMemory(this.deviceRegions);
    this.deviceConfig = { ...addresses, availIndex: index, eventIdx, indirect: tableEntries > 0 };
    this.device = new SplitVirtqueue(this.deviceConfig, this.deviceMemory);
  }
}
