/** The VDUSE ABI from the driver's side: reads what a device passes to ioctls, and writes the answers in place. */
import type { VduseQueueInfo } from './vduse-abi.js';

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function isZero(bytes: Uint8Array, from: number, to: number): boolean {
  return bytes.subarray(from, to).every((byte) => byte === 0);
}

/** A name ends at its first NUL, at the latest at the field's last byte. */
export function readDeviceName(bytes: Uint8Array): string {
  const field = bytes.subarray(0, 255);
  const end = field.indexOf(0);
  return new TextDecoder().decode(end < 0 ? field : field.subarray(0, end));
}

export interface DeviceConfigQuestion {
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly features: bigint;
  readonly queueCount: number;
  readonly queueAlignment: number;
  readonly groupCount: number;
  readonly addressSpaceCount: number;
  readonly reservedIsZero: boolean;
  readonly configBytes: number;
  readonly config: Uint8Array;
}

/** struct vduse_dev_config; undefined where the buffer is shorter than what it announces. */
export function readDeviceConfig(bytes: Uint8Array): DeviceConfigQuestion | undefined {
  if (bytes.byteLength < 336) {
    return undefined;
  }
  const data = view(bytes);
  const configBytes = data.getUint32(332, true);
  return {
    name: readDeviceName(bytes),
    vendorId: data.getUint32(256, true),
    deviceId: data.getUint32(260, true),
    features: data.getBigUint64(264, true),
    queueCount: data.getUint32(272, true),
    queueAlignment: data.getUint32(276, true),
    groupCount: data.getUint32(280, true),
    addressSpaceCount: data.getUint32(284, true),
    reservedIsZero: isZero(bytes, 288, 332),
    configBytes,
    config: bytes.slice(336, 336 + configBytes),
  };
}

export function readU32(bytes: Uint8Array, offset: number): number {
  return view(bytes).getUint32(offset, true);
}

export function readI32(bytes: Uint8Array, offset: number): number {
  return view(bytes).getInt32(offset, true);
}

export function readU64(bytes: Uint8Array, offset: number): bigint {
  return view(bytes).getBigUint64(offset, true);
}

export function writeU64(bytes: Uint8Array, offset: number, value: bigint): void {
  view(bytes).setBigUint64(offset, value, true);
}

/** struct vduse_vq_config. */
export function readQueueConfig(bytes: Uint8Array): {
  index: number;
  maxSize: number;
  group: number;
  reservedIsZero: boolean;
} {
  const data = view(bytes);
  return {
    index: data.getUint32(0, true),
    maxSize: data.getUint16(4, true),
    group: data.getUint32(8, true),
    reservedIsZero: isZero(bytes, 6, 8) && isZero(bytes, 12, 32),
  };
}

/** struct vduse_vq_info, the answer. */
export function writeQueueInfo(bytes: Uint8Array, info: VduseQueueInfo): void {
  const data = view(bytes);
  data.setUint32(4, info.size, true);
  data.setBigUint64(8, BigInt(info.descriptorAddress), true);
  data.setBigUint64(16, BigInt(info.driverAddress), true);
  data.setBigUint64(24, BigInt(info.deviceAddress), true);
  data.setBigUint64(32, 0n, true);
  data.setUint16(32, info.availIndex, true);
  data.setUint8(40, info.ready ? 1 : 0);
}

/** struct vduse_iotlb_entry, the answer. */
export function writeIotlbEntry(
  bytes: Uint8Array,
  entry: { offset: number; start: number; length: number; access: number },
): void {
  const data = view(bytes);
  data.setBigUint64(0, BigInt(entry.offset), true);
  data.setBigUint64(8, BigInt(entry.start), true);
  data.setBigUint64(16, BigInt(entry.start + entry.length - 1), true);
  data.setUint8(24, entry.access);
}

/** struct vduse_iova_umem. */
export function readUserMemory(bytes: Uint8Array): {
  address: number;
  iova: bigint;
  size: bigint;
  reservedIsZero: boolean;
} {
  return {
    address: Number(readU64(bytes, 0)),
    iova: readU64(bytes, 8),
    size: readU64(bytes, 16),
    reservedIsZero: isZero(bytes, 24, 48),
  };
}

/** struct vduse_iova_info: start and last are both question and answer, the rest is reserved in the question. */
export function isIovaInfoReservedZero(bytes: Uint8Array): boolean {
  return isZero(bytes, 24, 48);
}
