/**
 * The vhost-user protocol's numbers, as data beside their section names in QEMU's docs/interop/vhost-user.rst.
 * All fields are in the machine's byte order, which is little-endian wherever this runs.
 */
import { passedFdsMax } from '../../native/unix-socket.js';

/** "Header": request u32, flags u32, payload size u32. */
export const HEADER = { request: 0, flags: 4, size: 8, bytes: 12 } as const;

/** "Header": the version, a reply, and the wish for one. */
export const MessageFlag = { VERSION: 1, VERSION_MASK: 3, REPLY: 4, NEED_REPLY: 8 } as const;

/** "Front-end message types". */
export const FrontendRequest = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  SET_BACKEND_REQ_FD: 21,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  RESET_DEVICE: 34,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
  SET_STATUS: 39,
  GET_STATUS: 40,
} as const;

/** "Back-end message types". */
export const BackendRequest = { CONFIG_CHANGE: 2 } as const;

/** "Communication": the feature bit that says that there are protocol features. */
export const PROTOCOL_FEATURES_BIT = 30;

/** "Protocol features", as bit numbers. */
export const ProtocolFeature = {
  MQ: 0,
  REPLY_ACK: 3,
  BACKEND_REQ: 5,
  CONFIG: 9,
  RESET_DEVICE: 13,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
} as const;

export const offeredProtocolFeatures = Object.values(ProtocolFeature).reduce(
  (features, bit) => features | (1n << BigInt(bit)),
  0n,
);

/** "Memory region description": four u64. */
export const REGION = { guestAddress: 0, length: 8, userAddress: 16, fileOffset: 24, bytes: 32 } as const;
/** "Multiple Memory regions description": a count and padding; "Single": padding. */
export const regionsOffset = 8;
/** "A vring address description". */
export const VRING_ADDRESS = {
  index: 0,
  flags: 4,
  descriptor: 8,
  used: 16,
  available: 24,
  bytes: 40,
} as const;
/** "Virtio device config space": offset, size and flags, then the bytes. */
export const CONFIG = { offset: 0, size: 4, flags: 8, bytes: 12 } as const;

/** "VHOST_USER_SET_VRING_KICK": no descriptor comes with the message. */
export const NO_FD = 0x100;
/** The index of a ring is 8 bits wide where a descriptor is set. */
export const vringCountMax = 256;
/** QEMU's VHOST_USER_MAX_CONFIG_SIZE: what lies behind a device's own space reads as zeroes. */
export const configBytesMax = 256;
/** As many as other back-ends have. QEMU takes the least of this and what the machine has. */
export const memorySlotsMax = 509;
/** The longest payload: a memory table with as many regions as descriptors fit in one message. */
export const payloadBytesMax = regionsOffset + REGION.bytes * passedFdsMax;
