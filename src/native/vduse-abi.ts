/**
 * The VDUSE ABI as bytes: ioctl numbers, and the layouts of their arguments and of messages
 * (include/uapi/linux/vduse.h, API versions 0 and 1). Everything is little-endian here; every size is the
 * kernel's.
 */

const type = 0x81;
const READ = 2;
const WRITE = 1;

function ioc(direction: number, nr: number, size: number): number {
  return ((direction << 30) | (size << 16) | (type << 8) | nr) >>> 0;
}

export const VduseIoctl = {
  GET_API_VERSION: ioc(READ, 0x00, 8),
  SET_API_VERSION: ioc(WRITE, 0x01, 8),
  CREATE_DEV: ioc(WRITE, 0x02, 336),
  DESTROY_DEV: ioc(WRITE, 0x03, 256),
  IOTLB_GET_FD: ioc(READ | WRITE, 0x10, 32),
  DEV_GET_FEATURES: ioc(READ, 0x11, 8),
  DEV_SET_CONFIG: ioc(WRITE, 0x12, 8),
  DEV_INJECT_CONFIG_IRQ: ioc(0, 0x13, 0),
  VQ_SETUP: ioc(WRITE, 0x14, 32),
  VQ_GET_INFO: ioc(READ | WRITE, 0x15, 48),
  VQ_SETUP_KICKFD: ioc(WRITE, 0x16, 8),
  VQ_INJECT_IRQ: ioc(WRITE, 0x17, 4),
  IOTLB_REG_UMEM: ioc(WRITE, 0x18, 48),
  IOTLB_DEREG_UMEM: ioc(WRITE, 0x19, 48),
  IOTLB_GET_INFO: ioc(READ | WRITE, 0x1a, 48),
  /** API 1. */
  IOTLB_GET_FD2: ioc(READ | WRITE, 0x1b, 80),
} as const;

export const vduseControlPath = '/dev/vduse/control';
export const vduseDeviceDirectory = '/dev/vduse';
/** The newest API version that this project speaks. */
export const vduseApiVersionMax = 1;

/** struct vduse_dev_request and struct vduse_dev_response. */
export const vduseMessageBytes = 152;

export const VduseRequestType = {
  GET_VQ_STATE: 0,
  SET_STATUS: 1,
  UPDATE_IOTLB: 2,
  /** API 1. */
  SET_VQ_GROUP_ASID: 3,
} as const;

const nameBytes = 256;
const configHeaderBytes = 336;

export interface VduseDeviceConfig {
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly features: bigint;
  readonly queueCount: number;
  /** Alignment of the rings, bytes. 0 is refused by newer kernels. */
  readonly queueAlignment: number;
  /** API 1 wants at least one of each, API 0 none. */
  readonly groupCount: number;
  readonly addressSpaceCount: number;
  readonly config: Uint8Array;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Off the JavaScript heap, where a buffer's address does not change during a call. */
function allocate(length: number): Uint8Array {
  return new Uint8Array(new ArrayBuffer(length));
}

/** struct vduse_dev_config. The name is checked by the caller (see device-name.ts). */
export function encodeDeviceConfig(device: VduseDeviceConfig): Uint8Array {
  const bytes = allocate(configHeaderBytes + device.config.length);
  const data = view(bytes);
  bytes.set(encodeDeviceName(device.name));
  data.setUint32(256, device.vendorId, true);
  data.setUint32(260, device.deviceId, true);
  data.setBigUint64(264, device.features, true);
  data.setUint32(272, device.queueCount, true);
  data.setUint32(276, device.queueAlignment, true);
  data.setUint32(280, device.groupCount, true);
  data.setUint32(284, device.addressSpaceCount, true);
  data.setUint32(332, device.config.length, true);
  bytes.set(device.config, configHeaderBytes);
  return bytes;
}

export function encodeDeviceName(name: string): Uint8Array {
  const bytes = allocate(nameBytes);
  new TextEncoder().encodeInto(name, bytes.subarray(0, nameBytes - 1));
  return bytes;
}

export function encodeU64(value: bigint): Uint8Array {
  const bytes = allocate(8);
  view(bytes).setBigUint64(0, value, true);
  return bytes;
}

export function decodeU64(bytes: Uint8Array): bigint {
  return view(bytes).getBigUint64(0, true);
}

/** struct vduse_config_data. */
export function encodeConfigData(offset: number, data: Uint8Array): Uint8Array {
  const bytes = allocate(8 + data.length);
  view(bytes).setUint32(0, offset, true);
  view(bytes).setUint32(4, data.length, true);
  bytes.set(data, 8);
  return bytes;
}

/** struct vduse_vq_config. */
export function encodeQueueConfig(queue: { index: number; maxSize: number; group: number }): Uint8Array {
  const bytes = allocate(32);
  view(bytes).setUint32(0, queue.index, true);
  view(bytes).setUint16(4, queue.maxSize, true);
  view(bytes).setUint32(8, queue.group, true);
  return bytes;
}

export interface VduseQueueInfo {
  readonly index: number;
  readonly size: number;
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  /** Of a split queue. */
  readonly availIndex: number;
  readonly ready: boolean;
}

/** struct vduse_vq_info, the question. */
export function encodeQueueInfo(index: number): Uint8Array {
  const bytes = allocate(48);
  view(bytes).setUint32(0, index, true);
  return bytes;
}

/** struct vduse_vq_info, the answer. Addresses beyond 2^53 come out as no region's address. */
export function decodeQueueInfo(bytes: Uint8Array): VduseQueueInfo {
  const data = view(bytes);
  const address = (at: number): number => Number(data.getBigUint64(at, true));
  return {
    index: data.getUint32(0, true),
    size: data.getUint32(4, true),
    descriptorAddress: address(8),
    driverAddress: address(16),
    deviceAddress: address(24),
    availIndex: data.getUint16(32, true),
    ready: data.getUint8(40) !== 0,
  };
}

/** struct vduse_vq_eventfd; a descriptor of -1 takes the queue's eventfd away. */
export function encodeQueueEventFd(index: number, fd: number): Uint8Array {
  const bytes = allocate(8);
  view(bytes).setUint32(0, index, true);
  view(bytes).setInt32(4, fd, true);
  return bytes;
}

export const VduseAccess = { RO: 1, WO: 2, RW: 3 } as const;

export interface VduseIotlbEntry {
  /** Bytes from the start of the file that the descriptor names. */
  readonly offset: number;
  readonly start: bigint;
  /** Inclusive. */
  readonly last: bigint;
  /** A VduseAccess, as the device may use the range. */
  readonly access: number;
}

/** struct vduse_iotlb_entry, the question: the first map that overlaps the range. */
export function encodeIotlbEntry(range: { start: bigint; last: bigint }): Uint8Array {
  const bytes = allocate(32);
  view(bytes).setBigUint64(8, range.start, true);
  view(bytes).setBigUint64(16, range.last, true);
  return bytes;
}

export function decodeIotlbEntry(bytes: Uint8Array): VduseIotlbEntry {
  const data = view(bytes);
  return {
    offset: Number(data.getBigUint64(0, true)),
    start: data.getBigUint64(8, true),
    last: data.getBigUint64(16, true),
    access: data.getUint8(24),
  };
}

/** struct vduse_iotlb_entry_v2: the entry and the address space that it belongs to. API 1. */
export function encodeIotlbEntryV2(range: { start: bigint; last: bigint; addressSpace: number }): Uint8Array {
  const bytes = allocate(80);
  bytes.set(encodeIotlbEntry(range));
  view(bytes).setUint32(32, range.addressSpace, true);
  return bytes;
}

/** struct vduse_iova_umem. */
export function encodeUserMemory(memory: {
  address: number;
  iova: bigint;
  size: bigint;
  addressSpace: number;
}): Uint8Array {
  const bytes = allocate(48);
  const data = view(bytes);
  data.setBigUint64(0, BigInt(memory.address), true);
  data.setBigUint64(8, memory.iova, true);
  data.setBigUint64(16, memory.size, true);
  data.setUint32(24, memory.addressSpace, true);
  return bytes;
}

export interface VduseIovaInfo {
  readonly start: bigint;
  readonly last: bigint;
  /** Whether user memory may be registered in place of the range's pages. */
  readonly takesUserMemory: boolean;
}

/** struct vduse_iova_info, the question. */
export function encodeIovaInfo(range: { start: bigint; last: bigint; addressSpace: number }): Uint8Array {
  const bytes = allocate(48);
  const data = view(bytes);
  data.setBigUint64(0, range.start, true);
  data.setBigUint64(8, range.last, true);
  data.setUint32(24, range.addressSpace, true);
  return bytes;
}

export function decodeIovaInfo(bytes: Uint8Array): VduseIovaInfo {
  const data = view(bytes);
  return {
    start: data.getBigUint64(0, true),
    last: data.getBigUint64(8, true),
    takesUserMemory: (data.getBigUint64(16, true) & 1n) === 1n,
  };
}

export type VduseRequest = { readonly id: number } & (
  | { readonly type: 'get-vq-state'; readonly index: number }
  | { readonly type: 'set-status'; readonly status: number }
  | { readonly type: 'update-iotlb'; readonly start: bigint; readonly last: bigint }
  | { readonly type: 'set-vq-group-asid'; readonly group: number; readonly addressSpace: number }
  | { readonly type: 'unknown'; readonly number: number }
);

/** struct vduse_dev_request. */
export function decodeRequest(bytes: Uint8Array): VduseRequest {
  const data = view(bytes);
  const number = data.getUint32(0, true);
  const id = data.getUint32(4, true);
  switch (number) {
    case VduseRequestType.GET_VQ_STATE:
      return { id, type: 'get-vq-state', index: data.getUint32(24, true) };
    case VduseRequestType.SET_STATUS:
      return { id, type: 'set-status', status: data.getUint8(24) };
    case VduseRequestType.UPDATE_IOTLB:
      return {
        id,
        type: 'update-iotlb',
        start: data.getBigUint64(24, true),
        last: data.getBigUint64(32, true),
      };
    case VduseRequestType.SET_VQ_GROUP_ASID:
      return {
        id,
        type: 'set-vq-group-asid',
        group: data.getUint32(24, true),
        addressSpace: data.getUint32(28, true),
      };
    default:
      return { id, type: 'unknown', number };
  }
}

/** struct vduse_dev_response. `queueState` answers GET_VQ_STATE. */
export function encodeResponse(response: {
  id: number;
  ok: boolean;
  queueState?: { index: number; availIndex: number };
}): Uint8Array {
  const bytes = allocate(vduseMessageBytes);
  const data = view(bytes);
  data.setUint32(0, response.id, true);
  data.setUint32(4, response.ok ? 0 : 1, true);
  if (response.queueState !== undefined) {
    data.setUint32(24, response.queueState.index, true);
    data.setUint16(28, response.queueState.availIndex, true);
  }
  return bytes;
}
