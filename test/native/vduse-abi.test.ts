/**
 * VDUSE's bytes against numbers and offsets that the C compiler gave for include/uapi/linux/vduse.h (Linux 6.1; of
 * API version 1, Linux 7.2). Nothing here is computed by the code under test.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  decodeIotlbEntry,
  decodeIovaInfo,
  decodeQueueInfo,
  decodeRequest,
  decodeU64,
  encodeConfigData,
  encodeDeviceConfig,
  encodeDeviceName,
  encodeIotlbEntry,
  encodeIotlbEntryV2,
  encodeIovaInfo,
  encodeQueueConfig,
  encodeQueueEventFd,
  encodeQueueInfo,
  encodeResponse,
  encodeU64,
  encodeUserMemory,
  VduseAccess,
  VduseIoctl,
  VduseRequestType,
  vduseMessageBytes,
} from '../../src/native/vduse-abi.js';

/** A struct of `size` zero bytes, but for what is set at offsets. */
function struct(size: number, fields: readonly (readonly [offset: number, hex: string])[]): Uint8Array {
  const bytes = new Uint8Array(size);
  for (const [offset, hex] of fields) {
    bytes.set(Buffer.from(hex.replaceAll(' ', ''), 'hex'), offset);
  }
  return bytes;
}

test('ioctl numbers', () => {
  assert.deepEqual(VduseIoctl, {
    GET_API_VERSION: 0x80088100,
    SET_API_VERSION: 0x40088101,
    CREATE_DEV: 0x41508102,
    DESTROY_DEV: 0x41008103,
    IOTLB_GET_FD: 0xc0208110,
    DEV_GET_FEATURES: 0x80088111,
    DEV_SET_CONFIG: 0x40088112,
    DEV_INJECT_CONFIG_IRQ: 0x8113,
    VQ_SETUP: 0x40208114,
    VQ_GET_INFO: 0xc0308115,
    VQ_SETUP_KICKFD: 0x40088116,
    VQ_INJECT_IRQ: 0x40048117,
    IOTLB_REG_UMEM: 0x40308118,
    IOTLB_DEREG_UMEM: 0x40308119,
    IOTLB_GET_INFO: 0xc030811a,
    IOTLB_GET_FD2: 0xc050811b,
  });
});

test('message types, sizes and access bits', () => {
  assert.deepEqual(VduseRequestType, {
    GET_VQ_STATE: 0,
    SET_STATUS: 1,
    UPDATE_IOTLB: 2,
    SET_VQ_GROUP_ASID: 3,
  });
  assert.equal(vduseMessageBytes, 152);
  assert.deepEqual(VduseAccess, { RO: 1, WO: 2, RW: 3 });
});

describe('arguments of ioctls', () => {
  test('struct vduse_dev_config', () => {
    const bytes = encodeDeviceConfig({
      name: 'disk0',
      vendorId: 0x01020304,
      deviceId: 2,
      features: 0x8877665544332211n,
      queueCount: 0x1234,
      queueAlignment: 4096,
      groupCount: 1,
      addressSpaceCount: 2,
      config: Uint8Array.of(0xaa, 0xbb, 0xcc),
    });
    assert.deepEqual(
      bytes,
      struct(336 + 3, [
        [0, '6469736b30'],
        [0x100, '04030201'],
        [0x104, '02000000'],
        [0x108, '1122334455667788'],
        [0x110, '34120000'],
        [0x114, '00100000'],
        [0x118, '01000000'],
        [0x11c, '02000000'],
        [0x14c, '03000000'],
        [0x150, 'aabbcc'],
      ]),
    );
  });

  test('a name always ends with a NUL', () => {
    assert.deepEqual(encodeDeviceName('ab'), struct(256, [[0, '6162']]));
    const longest = encodeDeviceName('x'.repeat(300));
    assert.deepEqual([longest.length, longest[254], longest[255]], [256, 0x78, 0]);
  });

  test('__u64', () => {
    assert.deepEqual(encodeU64(0x0102030405060708n), struct(8, [[0, '0807060504030201']]));
    assert.equal(decodeU64(struct(8, [[0, 'ffffffffffffffff']])), 0xffff_ffff_ffff_ffffn);
  });

  test('struct vduse_config_data', () => {
    assert.deepEqual(
      encodeConfigData(0x102, Uint8Array.of(7, 8)),
      struct(10, [
        [0, '02010000'],
        [4, '02000000'],
        [8, '0708'],
      ]),
    );
  });

  test('struct vduse_vq_config', () => {
    assert.deepEqual(
      encodeQueueConfig({ index: 3, maxSize: 0x8000, group: 5 }),
      struct(32, [
        [0, '03000000'],
        [4, '0080'],
        [8, '05000000'],
      ]),
    );
  });

  test('struct vduse_vq_eventfd, also to take the eventfd away', () => {
    assert.deepEqual(encodeQueueEventFd(1, 42), struct(8, [[0, '01000000 2a000000']]));
    assert.deepEqual(encodeQueueEventFd(0, -1), struct(8, [[0, '00000000 ffffffff']]));
  });

  test('struct vduse_iova_umem', () => {
    assert.deepEqual(
      encodeUserMemory({ address: 0x7f0011223000, iova: 0x1000n, size: 0x4000000n, addressSpace: 9 }),
      struct(48, [
        [0, '0030221100 7f0000'],
        [8, '0010000000000000'],
        [0x10, '0000000400000000'],
        [0x18, '09000000'],
      ]),
    );
  });
});

describe('questions and answers', () => {
  test('struct vduse_vq_info', () => {
    assert.deepEqual(encodeQueueInfo(0x01020304), struct(48, [[0, '04030201']]));
    const answer = struct(48, [
      [0, '02000000'],
      [4, '00010000'],
      [8, '0010000040000000'],
      [0x10, '0020000040000000'],
      [0x18, '0030000040000000'],
      [0x20, '3412 ffff ffff ffff'],
      [0x28, '01'],
    ]);
    assert.deepEqual(decodeQueueInfo(answer), {
      index: 2,
      size: 256,
      descriptorAddress: 0x40_0000_1000,
      driverAddress: 0x40_0000_2000,
      deviceAddress: 0x40_0000_3000,
      availIndex: 0x1234,
      ready: true,
    });
    answer[0x28] = 0;
    assert.equal(decodeQueueInfo(answer).ready, false);
  });

  test('an address that is no double does not become one of a region', () => {
    const info = decodeQueueInfo(struct(48, [[8, '0100000000002000']]));
    assert.ok(info.descriptorAddress >= 2 ** 53);
  });

  test('struct vduse_iotlb_entry, and the one with an address space', () => {
    const range = { start: 0x1122334455667788n, last: 0xffff_ffff_ffff_ffffn };
    const fields = [
      [8, '8877665544332211'],
      [16, 'ffffffffffffffff'],
    ] as const;
    assert.deepEqual(encodeIotlbEntry(range), struct(32, fields));
    assert.deepEqual(
      encodeIotlbEntryV2({ ...range, addressSpace: 3 }),
      struct(80, [...fields, [32, '03000000']]),
    );
    const answer = struct(80, [[0, '0010000000000000'], ...fields, [24, '02']]);
    assert.deepEqual(decodeIotlbEntry(answer), { offset: 4096, ...range, access: 2 });
  });

  test('struct vduse_iova_info', () => {
    const range = { start: 0x1000n, last: 0x1fffn };
    const fields = [
      [0, '0010000000000000'],
      [8, 'ff1f000000000000'],
    ] as const;
    assert.deepEqual(
      encodeIovaInfo({ ...range, addressSpace: 2 }),
      struct(48, [...fields, [24, '02000000']]),
    );
    for (const [capability, takesUserMemory] of [
      ['01', true],
      ['00', false],
      ['02', false],
      ['03', true],
    ] as const) {
      assert.deepEqual(decodeIovaInfo(struct(48, [...fields, [16, capability]])), {
        ...range,
        takesUserMemory,
      });
    }
  });
});

describe('messages', () => {
  const request = (type: string, payload: string): ReturnType<typeof decodeRequest> =>
    decodeRequest(
      struct(152, [
        [0, type],
        [4, '78563412'],
        [8, 'ffffffffffffffffffffffffffffffff'],
        [24, payload],
      ]),
    );
  const id = 0x12345678;

  test('struct vduse_dev_request of every type', () => {
    assert.deepEqual(request('00000000', '02010000'), { id, type: 'get-vq-state', index: 0x102 });
    assert.deepEqual(request('01000000', '0f'), { id, type: 'set-status', status: 15 });
    assert.deepEqual(request('01000000', '80ffffff'), { id, type: 'set-status', status: 128 });
    assert.deepEqual(request('02000000', '0010000000000000 ffffffffffffffff'), {
      id,
      type: 'update-iotlb',
      start: 4096n,
      last: 0xffff_ffff_ffff_ffffn,
    });
    assert.deepEqual(request('03000000', '01000000 02000000'), {
      id,
      type: 'set-vq-group-asid',
      group: 1,
      addressSpace: 2,
    });
    assert.deepEqual(request('04000000', '00'), { id, type: 'unknown', number: 4 });
    assert.deepEqual(request('ffffffff', '00'), { id, type: 'unknown', number: 0xffff_ffff });
  });

  test('struct vduse_dev_response: the id, how it went, and a queue where one was asked for', () => {
    assert.deepEqual(encodeResponse({ id, ok: true }), struct(152, [[0, '78563412']]));
    assert.deepEqual(encodeResponse({ id, ok: false }), struct(152, [[0, '78563412 01000000']]));
    assert.deepEqual(
      encodeResponse({ id, ok: true, queueState: { index: 7, availIndex: 0xfffe } }),
      struct(152, [
        [0, '78563412 00000000'],
        [24, '07000000 feff'],
      ]),
    );
  });
});
