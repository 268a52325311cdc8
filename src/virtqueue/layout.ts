/**
 * The split virtqueue's memory layout, as data beside the section numbers of the virtio 1.3 specification.
 * All fields are little-endian, and so is every machine this runs on.
 */

/** 2.7.5 The descriptor table: struct virtq_desc, 16 bytes, the table aligned to 16. */
export const DESC = {
  bytes: 16,
  alignment: 16,
  address: 0,
  length: 8,
  flags: 12,
  next: 14,
} as const;

/** 2.7.5: descriptor flags. */
export const DESC_F_NEXT = 1;
export const DESC_F_WRITE = 2;
export const DESC_F_INDIRECT = 4;

/** 2.7.6 The available ring: flags u16, idx u16, ring u16[size], used_event u16; aligned to 2. */
export const AVAIL = { alignment: 2, flags16: 0, idx16: 1, ring16: 2 } as const;
/** 2.7.6.1: the driver wants no used-buffer notification. Ignored under EVENT_IDX. */
export const AVAIL_F_NO_INTERRUPT = 1;

/** 2.7.8 The used ring: flags u16, idx u16, then pairs of id u32 and len u32, avail_event u16; aligned to 4. */
export const USED = { alignment: 4, flags16: 0, idx16: 1, ring32: 1 } as const;
/** 2.7.10: the device wants no available-buffer notification. Ignored under EVENT_IDX. */
export const USED_F_NO_NOTIFY = 1;

/** 2.7: bytes of each part for a queue size. Event indices are counted in, negotiated or not. */
export function descriptorTableBytes(size: number): number {
  return DESC.bytes * size;
}

export function availableRingBytes(size: number): number {
  return 6 + 2 * size;
}

export function usedRingBytes(size: number): number {
  return 6 + 8 * size;
}

/** 6 Reserved feature bits of the transport and the queues, as bit numbers. */
export const RING_F = {
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  RING_RESET: 40,
} as const;

/**
 * 2.7.7.2, 2.7.10: whether moving an index from `previous` to `current` has passed the event index, which
 * asks for a notification when its element is published. All are 16-bit counters that wrap.
 */
export function crossesEvent(event: number, current: number, previous: number): boolean {
  return ((current - event - 1) & 0xffff) < ((current - previous) & 0xffff);
}

export function hasFeature(features: bigint, bit: number): boolean {
  return ((features >> BigInt(bit)) & 1n) === 1n;
}
