/** virtio-blk's numbers (virtio 1.3, 5.2). */

/** 5.2.3 Feature bits. */
export const BLK_F = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  GEOMETRY: 4,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
} as const;

/** 5.2.6 Request types. */
export const BLK_T = {
  IN: 0,
  OUT: 1,
  FLUSH: 4,
  GET_ID: 8,
  DISCARD: 11,
  WRITE_ZEROES: 13,
} as const;

/** 5.2.6 Status bytes. */
export const BLK_S = { OK: 0, IOERR: 1, UNSUPP: 2 } as const;

/** 5.2.6: struct virtio_blk_req's header: type u32, reserved u32, sector u64. */
export const BLK_HEADER = { bytes: 16, type: 0, sector: 8 } as const;

/** 5.2.6: struct virtio_blk_discard_write_zeroes. */
export const BLK_RANGE = { bytes: 16, sector: 0, sectorCount: 8, flags: 12 } as const;
export const BLK_RANGE_F_UNMAP = 1;

/** The unit of sector numbers and capacities, whatever the block size. */
export const sectorBytes = 512;
