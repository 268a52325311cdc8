/** VDUSE's bytes as a driver sees them, for the fake of one: written from the kernel's header, not from our encoders. */
import { SystemCallError } from '../../src/base/errors.js';
import { describeErrno } from '../../src/native/errno.js';

/** Numbers of the kernel's header, on their own: the code under test is not asked what they are. */
export const ioctlNames = new Map<number, string>([
  [0x80088100, 'GET_API_VERSION'],
  [0x40088101, 'SET_API_VERSION'],
  [0x41508102, 'CREATE_DEV'],
  [0x41008103, 'DESTROY_DEV'],
  [0xc0208110, 'IOTLB_GET_FD'],
  [0x80088111, 'DEV_GET_FEATURES'],
  [0x40088112, 'DEV_SET_CONFIG'],
  [0x8113, 'DEV_INJECT_CONFIG_IRQ'],
  [0x40208114, 'VQ_SETUP'],
  [0xc0308115, 'VQ_GET_INFO'],
  [0x40088116, 'VQ_SETUP_KICKFD'],
  [0xc050811b, 'IOTLB_GET_FD2'],
]);

export interface FakeRegion {
  readonly start: bigint;
  readonly last: bigint;
  readonly fd: number;
  readonly offset: number;
  /** 1 read, 2 write, 3 both. */
  readonly permission: number;
}

export interface FakeResponse {
  readonly ok: boolean;
  /** Of GET_VQ_STATE. */
  readonly index: number;
  readonly availIndex: number;
}

export interface CreatedDevice {
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly features: bigint;
  readonly queueCount: number;
  readonly queueAlignment: number;
  readonly groups: number;
  readonly addressSpaces: number;
  readonly config: Uint8Array;
}

/** struct vduse_dev_config. */
export function decodeCreatedDevice(data: DataView): CreatedDevice {
  const configSize = data.getUint32(332, true);
  return {
    name: cString(data, 256),
    vendorId: data.getUint32(256, true),
    deviceId: data.getUint32(260, true),
    features: data.getBigUint64(264, true),
    queueCount: data.getUint32(272, true),
    queueAlignment: data.getUint32(276, true),
    groups: data.getUint32(280, true),
    addressSpaces: data.getUint32(284, true),
    config: new Uint8Array(data.buffer.slice(data.byteOffset + 336, data.byteOffset + 336 + configSize)),
  };
}

export function systemError(call: string, errno: number): SystemCallError {
  return new SystemCallError(call, errno, describeErrno(errno));
}

export function cString(data: DataView, length: number): string {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, length);
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}
