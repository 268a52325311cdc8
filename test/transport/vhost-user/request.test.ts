import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { VduseError } from '../../../src/base/errors.js';
import { FrontendRequest, MessageFlag, REGION } from '../../../src/transport/vhost-user/protocol.js';
import { decodeRequest, type VhostUserRequest } from '../../../src/transport/vhost-user/request.js';
import { propertyRuns } from '../../support/property.js';
import { isVduseError } from '../../support/vduse-error.js';

/** Payload lengths and numbers of descriptors of every request, as the protocol has them. */
const shapes: Readonly<Record<keyof typeof FrontendRequest, { bytes: number; fds: number }>> = {
  GET_FEATURES: { bytes: 0, fds: 0 },
  SET_FEATURES: { bytes: 8, fds: 0 },
  SET_OWNER: { bytes: 0, fds: 0 },
  RESET_OWNER: { bytes: 0, fds: 0 },
  SET_MEM_TABLE: { bytes: 8 + REGION.bytes, fds: 1 },
  SET_VRING_NUM: { bytes: 8, fds: 0 },
  SET_VRING_ADDR: { bytes: 40, fds: 0 },
  SET_VRING_BASE: { bytes: 8, fds: 0 },
  GET_VRING_BASE: { bytes: 8, fds: 0 },
  SET_VRING_KICK: { bytes: 8, fds: 1 },
  SET_VRING_CALL: { bytes: 8, fds: 1 },
  SET_VRING_ERR: { bytes: 8, fds: 1 },
  GET_PROTOCOL_FEATURES: { bytes: 0, fds: 0 },
  SET_PROTOCOL_FEATURES: { bytes: 8, fds: 0 },
  GET_QUEUE_NUM: { bytes: 0, fds: 0 },
  SET_VRING_ENABLE: { bytes: 8, fds: 0 },
  SET_BACKEND_REQ_FD: { bytes: 0, fds: 1 },
  GET_CONFIG: { bytes: 12, fds: 0 },
  SET_CONFIG: { bytes: 12, fds: 0 },
  RESET_DEVICE: { bytes: 0, fds: 0 },
  GET_MAX_MEM_SLOTS: { bytes: 0, fds: 0 },
  ADD_MEM_REG: { bytes: 8 + REGION.bytes, fds: 1 },
  REM_MEM_REG: { bytes: 8 + REGION.bytes, fds: 0 },
  SET_STATUS: { bytes: 8, fds: 0 },
  GET_STATUS: { bytes: 0, fds: 0 },
};
const names = Object.keys(shapes) as (keyof typeof FrontendRequest)[];

function payloadOf(name: keyof typeof FrontendRequest): Uint8Array {
  const payload = new Uint8Array(shapes[name].bytes);
  const view = new DataView(payload.buffer);
  if (name === 'SET_MEM_TABLE') {
    view.setUint32(0, 1, true);
  }
  if (name === 'SET_VRING_NUM') {
    view.setUint32(4, 128, true);
  }
  return payload;
}

function decode(request: number, payload: Uint8Array, fdCount = 0, flags = 1): VhostUserRequest {
  return decodeRequest({ request, flags, payload, fds: Array.from({ length: fdCount }, (_, n) => n + 100) });
}

function refused(request: number, payload: Uint8Array, fdCount = 0, flags = 1): void {
  assert.throws(() => decode(request, payload, fdCount, flags), isVduseError('PROTOCOL'));
}

function state(index: number, number: number): Uint8Array {
  return new Uint8Array(new Uint32Array([index, number]).buffer);
}

test('every request is taken in its own shape, and refused truncated, longer, or with other descriptors', () => {
  for (const name of names) {
    const { bytes, fds } = shapes[name];
    const number = FrontendRequest[name];
    const payload = payloadOf(name);
    decode(number, payload, fds);
    for (let length = 0; length < bytes; length++) {
      refused(number, payload.subarray(0, length), fds);
    }
    refused(number, Uint8Array.from([...payload, 0]), fds);
    refused(number, payload, fds + 2);
    if (fds > 0) {
      refused(number, payload, 0);
    }
  }
});

test('flags of another version, and replies, are no requests', () => {
  for (const flags of [0, 2, 3, MessageFlag.VERSION | MessageFlag.REPLY]) {
    refused(FrontendRequest.GET_FEATURES, new Uint8Array(0), 0, flags);
  }
  decode(FrontendRequest.GET_FEATURES, new Uint8Array(0), 0, MessageFlag.VERSION | MessageFlag.NEED_REPLY);
});

test('requests of features that are not offered are not known', () => {
  for (const request of [
    0,
    6,
    7,
    19,
    20,
    22,
    23,
    26,
    28,
    31,
    32,
    33,
    35,
    41,
    42,
    43,
    44,
    45,
    1000,
    2 ** 32 - 1,
  ]) {
    refused(request, new Uint8Array(8));
  }
});

test('ring sizes are powers of two up to 32768', () => {
  for (const size of [0, 3, 127, 32769, 65535, 65536, 2 ** 32 - 1]) {
    refused(FrontendRequest.SET_VRING_NUM, state(0, size));
  }
  for (const size of [1, 2, 128, 256, 32768]) {
    const request = decode(FrontendRequest.SET_VRING_NUM, state(3, size));
    assert.deepEqual(request, { kind: 'set-vring-num', index: 3, size });
  }
});

test('indices, states and addresses beyond what they can be', () => {
  refused(FrontendRequest.SET_VRING_BASE, state(0, 0x10000));
  refused(FrontendRequest.SET_VRING_ENABLE, state(0, 2));
  const u64 = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer);
  refused(FrontendRequest.SET_STATUS, u64(0x100n));
  refused(FrontendRequest.SET_VRING_KICK, u64(0x200n), 1);
  refused(FrontendRequest.SET_VRING_CALL, u64(0x100n), 1);
  refused(FrontendRequest.SET_VRING_CALL, u64(0n), 0);
  const request = decode(FrontendRequest.SET_VRING_CALL, u64(0x1ffn), 0);
  assert.deepEqual(request, { kind: 'set-vring-fd', fd: 'call', index: 255, hasFd: false });
  const region = new Uint8Array(8 + REGION.bytes);
  for (let field = 0; field < 4; field++) {
    region.fill(0);
    region[8 + field * 8 + 7] = 0x20;
    refused(FrontendRequest.ADD_MEM_REG, region, 1);
  }
  const addresses = new Uint8Array(40);
  addresses[4] = 1;
  refused(FrontendRequest.SET_VRING_ADDR, addresses);
});

test('a memory table has a descriptor for every region', () => {
  for (const [count, fds] of [
    [1, 0],
    [2, 1],
    [1, 2],
    [254, 254],
  ]) {
    const table = new Uint8Array(8 + count * REGION.bytes);
    new DataView(table.buffer).setUint32(0, count, true);
    refused(FrontendRequest.SET_MEM_TABLE, table, fds);
  }
  const empty = decode(FrontendRequest.SET_MEM_TABLE, new Uint8Array(8), 0);
  assert.deepEqual(empty, { kind: 'set-mem-table', regions: [] });
});

test('the configuration space ends at 256 bytes', () => {
  const config = (offset: number, length: number, bytes = length) => {
    const payload = new Uint8Array(12 + bytes);
    const view = new DataView(payload.buffer);
    view.setUint32(0, offset, true);
    view.setUint32(4, length, true);
    return payload;
  };
  decode(FrontendRequest.GET_CONFIG, config(0, 256));
  decode(FrontendRequest.GET_CONFIG, config(256, 0));
  for (const payload of [
    config(0, 257),
    config(1, 256),
    config(257, 0),
    config(2 ** 32 - 1, 2),
    config(0, 8, 7),
  ]) {
    refused(FrontendRequest.GET_CONFIG, payload);
    refused(FrontendRequest.SET_CONFIG, payload);
  }
});

test('any bytes are a request or a PROTOCOL error, and a request names nothing beyond 2^53', () => {
  const message = fc.record({
    request: fc.oneof(fc.constantFrom(...Object.values(FrontendRequest)), fc.integer({ min: 0, max: 60 })),
    payload: fc.oneof(
      fc.uint8Array({ minLength: 8, maxLength: 8 }),
      fc.uint8Array({ minLength: 40, maxLength: 40 }),
      fc.uint8Array({ maxLength: 300 }),
    ),
    fdCount: fc.integer({ min: 0, max: 3 }),
    flags: fc.oneof(fc.constantFrom(1, 9), fc.nat(15)),
  });
  fc.assert(
    fc.property(message, ({ request, payload, fdCount, flags }) => {
      let decoded: VhostUserRequest;
      try {
        decoded = decode(request, payload, fdCount, flags);
      } catch (error) {
        assert(error instanceof VduseError && error.code === 'PROTOCOL', String(error));
        return;
      }
      JSON.stringify(decoded, (_, value: unknown) => {
        assert(typeof value !== 'number' || Number.isSafeInteger(value));
        return typeof value === 'bigint' ? Number(value) : value;
      });
    }),
    propertyRuns(3000),
  );
});
