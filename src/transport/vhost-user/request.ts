/**
 * A front-end's messages as steps. This is the border: lengths, indices and numbers of descriptors are checked
 * here, once; what an address or an index means is the session's to know.
 */
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { passedFdsMax } from '../../native/unix-socket.js';
import type { VhostUserMessage } from './message-stream.js';
import {
  CONFIG,
  configBytesMax,
  FrontendRequest,
  MessageFlag,
  NO_FD,
  REGION,
  regionsOffset,
  VRING_ADDRESS,
} from './protocol.js';

/** Memory of the front-end's: a file's bytes, by the guest's address and by the front-end's own. */
export interface RegionDescription {
  readonly guestAddress: number;
  /** Bytes. */
  readonly length: number;
  readonly userAddress: number;
  /** Bytes from the start of the file. */
  readonly fileOffset: number;
}

/** Where the parts of a ring are, as the front-end's own addresses. */
export interface VringAddresses {
  readonly descriptor: number;
  readonly available: number;
  readonly used: number;
}

export type VringFd = 'kick' | 'call' | 'err';

export type VhostUserRequest =
  | { readonly kind: 'get-features' }
  | { readonly kind: 'set-features'; readonly features: bigint }
  | { readonly kind: 'get-protocol-features' }
  | { readonly kind: 'set-protocol-features'; readonly features: bigint }
  | { readonly kind: 'set-owner' }
  | { readonly kind: 'reset-owner' }
  | { readonly kind: 'reset-device' }
  | { readonly kind: 'get-status' }
  | { readonly kind: 'set-status'; readonly status: number }
  | { readonly kind: 'get-queue-num' }
  | { readonly kind: 'get-max-mem-slots' }
  | { readonly kind: 'set-mem-table'; readonly regions: readonly RegionDescription[] }
  | { readonly kind: 'add-mem-reg'; readonly region: RegionDescription }
  | { readonly kind: 'rem-mem-reg'; readonly region: RegionDescription }
  | { readonly kind: 'set-backend-req-fd' }
  | { readonly kind: 'get-config'; readonly offset: number; readonly length: number; readonly flags: number }
  | { readonly kind: 'set-config'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'set-vring-num'; readonly index: number; readonly size: number }
  | { readonly kind: 'set-vring-addr'; readonly index: number; readonly addresses: VringAddresses }
  | { readonly kind: 'set-vring-base'; readonly index: number; readonly availIndex: number }
  | { readonly kind: 'get-vring-base'; readonly index: number }
  | { readonly kind: 'set-vring-enable'; readonly index: number; readonly enabled: boolean }
  | {
      readonly kind: 'set-vring-fd';
      readonly fd: VringFd;
      readonly index: number;
      /** False: there is none, and the side that would wait for it polls. */
      readonly hasFd: boolean;
    };

/** Beyond it an address is no double's integer; no front-end has memory there. */
const addressLimit = 2n ** 53n;

const malformed = (what: string): VduseError => new VduseError('PROTOCOL', what);

class Payload {
  readonly #name: string;
  readonly #view: DataView;

  constructor(name: string, bytes: Uint8Array) {
    this.#name = name;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get length(): number {
    return this.#view.byteLength;
  }

  from(offset: number): Uint8Array {
    return new Uint8Array(this.#view.buffer, this.#view.byteOffset + offset, this.length - offset);
  }

  refuse(what: string): never {
    throw malformed(`${this.#name}: ${what}`);
  }

  expectLength(length: number): this {
    if (this.length !== length) {
      this.refuse(`${this.length} bytes of payload, ${length} are expected`);
    }
    return this;
  }

  u32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }

  u64(offset = 0): bigint {
    return this.#view.getBigUint64(offset, true);
  }

  /** An address, an offset or a length. */
  number(offset: number): number {
    const value = this.u64(offset);
    return value < addressLimit ? Number(value) : this.refuse(`0x${value.toString(16)} is beyond 2^53`);
  }

  u32From(offset: number, range: { min: number; max: number; what: string }): number {
    const value = this.u32(offset);
    if (value < range.min || value > range.max) {
      this.refuse(`${range.what} ${value}`);
    }
    return value;
  }

  region(offset: number): RegionDescription {
    return {
      guestAddress: this.number(offset + REGION.guestAddress),
      length: this.number(offset + REGION.length),
      userAddress: this.number(offset + REGION.userAddress),
      fileOffset: this.number(offset + REGION.fileOffset),
    };
  }
}

interface Decoder {
  readonly name: string;
  /** Descriptors that come with the message, where their number does not depend on it. */
  readonly fds?: number;
  decode(payload: Payload, fdCount: number): VhostUserRequest;
}

/** A message without payload. */
function bare(name: string, request: VhostUserRequest): Decoder {
  return { name, decode: (payload) => payload.expectLength(0) && request };
}

/** A message with one u64. */
function withU64(name: string, make: (value: bigint, payload: Payload) => VhostUserRequest): Decoder {
  return { name, decode: (payload) => make(payload.expectLength(8).u64(), payload) };
}

/** A message with a "vring state description": the index of a ring, and a number. */
function withState(
  name: string,
  number: { min: number; max: number; what: string },
  make: (index: number, number: number, payload: Payload) => VhostUserRequest,
): Decoder {
  return {
    name,
    decode: (payload) => make(payload.expectLength(8).u32(0), payload.u32From(4, number), payload),
  };
}

function withVringFd(name: string, fd: VringFd): Decoder {
  return {
    name,
    // Its number of descriptors is a matter of a bit.
    fds: -1,
    decode: (payload, fdCount) => {
      const value = payload.expectLength(8).u64();
      const hasFd = (value & BigInt(NO_FD)) === 0n;
      if (value >= 2n * BigInt(NO_FD) || fdCount !== (hasFd ? 1 : 0)) {
        payload.refuse(`0x${value.toString(16)} with ${fdCount} descriptors`);
      }
      return { kind: 'set-vring-fd', fd, index: Number(value & 0xffn), hasFd };
    },
  };
}

/** Memory that is added or taken away. Older QEMUs send a descriptor with the latter too. */
function withRegion(name: string, kind: 'add-mem-reg' | 'rem-mem-reg'): Decoder {
  return {
    name,
    fds: -1,
    decode: (payload, fdCount) => {
      if (fdCount !== 1 && (kind === 'add-mem-reg' || fdCount !== 0)) {
        payload.refuse(`${fdCount} descriptors`);
      }
      return { kind, region: payload.expectLength(regionsOffset + REGION.bytes).region(regionsOffset) };
    },
  };
}

function decodeMemoryTable(payload: Payload, fdCount: number): VhostUserRequest {
  if (payload.length < regionsOffset) {
    payload.refuse(`${payload.length} bytes of payload`);
  }
  const count = payload.u32From(0, { min: 0, max: passedFdsMax, what: 'number of regions' });
  payload.expectLength(regionsOffset + count * REGION.bytes);
  if (fdCount !== count) {
    payload.refuse(`${count} regions with ${fdCount} descriptors`);
  }
  const regions = Array.from({ length: count }, (_, n) => payload.region(regionsOffset + n * REGION.bytes));
  return { kind: 'set-mem-table', regions };
}

function decodeAddresses(payload: Payload): VhostUserRequest {
  payload.expectLength(VRING_ADDRESS.bytes);
  if (payload.u32(VRING_ADDRESS.flags) !== 0) {
    payload.refuse('a log of writes is wanted, which was not offered');
  }
  const addresses = {
    descriptor: payload.number(VRING_ADDRESS.descriptor),
    available: payload.number(VRING_ADDRESS.available),
    used: payload.number(VRING_ADDRESS.used),
  };
  return { kind: 'set-vring-addr', index: payload.u32(VRING_ADDRESS.index), addresses };
}

/** The bytes behind the header are room for the answer, or what is to be written. */
function decodeConfig(payload: Payload): { offset: number; length: number; flags: number } {
  if (payload.length < CONFIG.bytes) {
    payload.refuse(`${payload.length} bytes of payload`);
  }
  const offset = payload.u32From(CONFIG.offset, { min: 0, max: configBytesMax, what: 'offset' });
  const length = payload.u32From(CONFIG.size, { min: 0, max: configBytesMax - offset, what: 'length' });
  payload.expectLength(CONFIG.bytes + length);
  return { offset, length, flags: payload.u32(CONFIG.flags) };
}

const F = FrontendRequest;
const decoders: ReadonlyMap<number, Decoder> = new Map<number, Decoder>([
  [F.GET_FEATURES, bare('GET_FEATURES', { kind: 'get-features' })],
  [F.SET_FEATURES, withU64('SET_FEATURES', (features) => ({ kind: 'set-features', features }))],
  [F.GET_PROTOCOL_FEATURES, bare('GET_PROTOCOL_FEATURES', { kind: 'get-protocol-features' })],
  [
    F.SET_PROTOCOL_FEATURES,
    withU64('SET_PROTOCOL_FEATURES', (features) => ({ kind: 'set-protocol-features', features })),
  ],
  [F.SET_OWNER, bare('SET_OWNER', { kind: 'set-owner' })],
  [F.RESET_OWNER, bare('RESET_OWNER', { kind: 'reset-owner' })],
  [F.RESET_DEVICE, bare('RESET_DEVICE', { kind: 'reset-device' })],
  [F.GET_STATUS, bare('GET_STATUS', { kind: 'get-status' })],
  [
    F.SET_STATUS,
    withU64('SET_STATUS', (status, payload) =>
      status <= 0xffn
        ? { kind: 'set-status', status: Number(status) }
        : payload.refuse(`status 0x${status.toString(16)}`),
    ),
  ],
  [F.GET_QUEUE_NUM, bare('GET_QUEUE_NUM', { kind: 'get-queue-num' })],
  [F.GET_MAX_MEM_SLOTS, bare('GET_MAX_MEM_SLOTS', { kind: 'get-max-mem-slots' })],
  [F.SET_MEM_TABLE, { name: 'SET_MEM_TABLE', fds: -1, decode: decodeMemoryTable }],
  [F.ADD_MEM_REG, withRegion('ADD_MEM_REG', 'add-mem-reg')],
  [F.REM_MEM_REG, withRegion('REM_MEM_REG', 'rem-mem-reg')],
  [F.SET_BACKEND_REQ_FD, { ...bare('SET_BACKEND_REQ_FD', { kind: 'set-backend-req-fd' }), fds: 1 }],
  [
    F.GET_CONFIG,
    { name: 'GET_CONFIG', decode: (payload) => ({ kind: 'get-config', ...decodeConfig(payload) }) },
  ],
  [
    F.SET_CONFIG,
    {
      name: 'SET_CONFIG',
      decode: (payload) => {
        const { offset } = decodeConfig(payload);
        return { kind: 'set-config', offset, bytes: payload.from(CONFIG.bytes) };
      },
    },
  ],
  [
    F.SET_VRING_NUM,
    withState(
      'SET_VRING_NUM',
      { min: 1, max: limits.queueSizeMax, what: 'ring size' },
      (index, size, payload) =>
        (size & (size - 1)) === 0
          ? { kind: 'set-vring-num', index, size }
          : payload.refuse(`ring size ${size} is no power of two`),
    ),
  ],
  [F.SET_VRING_ADDR, { name: 'SET_VRING_ADDR', decode: decodeAddresses }],
  [
    F.SET_VRING_BASE,
    withState('SET_VRING_BASE', { min: 0, max: 0xffff, what: 'available index' }, (index, availIndex) => ({
      kind: 'set-vring-base',
      index,
      availIndex,
    })),
  ],
  [
    F.GET_VRING_BASE,
    withState('GET_VRING_BASE', { min: 0, max: 0xffff_ffff, what: 'number' }, (index) => ({
      kind: 'get-vring-base',
      index,
    })),
  ],
  [
    F.SET_VRING_ENABLE,
    withState('SET_VRING_ENABLE', { min: 0, max: 1, what: 'state' }, (index, state) => ({
      kind: 'set-vring-enable',
      index,
      enabled: state === 1,
    })),
  ],
  [F.SET_VRING_KICK, withVringFd('SET_VRING_KICK', 'kick')],
  [F.SET_VRING_CALL, withVringFd('SET_VRING_CALL', 'call')],
  [F.SET_VRING_ERR, withVringFd('SET_VRING_ERR', 'err')],
]);

/** Throws PROTOCOL for a message that is none of ours or not as it should be. */
export function decodeRequest(message: VhostUserMessage): VhostUserRequest {
  const { request, flags, payload, fds } = message;
  if ((flags & MessageFlag.VERSION_MASK) !== MessageFlag.VERSION || (flags & MessageFlag.REPLY) !== 0) {
    throw malformed(`message ${request}: flags 0x${flags.toString(16)} are no request's of version 1`);
  }
  const decoder = decoders.get(request);
  if (decoder === undefined) {
    throw malformed(`message ${request} is not known, or needs a feature that was not offered`);
  }
  const { name, fds: wanted = 0 } = decoder;
  if (wanted >= 0 && fds.length !== wanted) {
    throw malformed(`${name}: ${fds.length} descriptors, ${wanted} expected`);
  }
  return decoder.decode(new Payload(name, payload), fds.length);
}
