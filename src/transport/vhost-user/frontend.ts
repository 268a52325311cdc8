/**
 * The front-end side of vhost-user, for tests and tools: what QEMU says to a back-end, as promises. Memory and rings
 * are the caller's: a file that both sides map, and virtqueue/driver-virtqueue.ts on it.
 */
import { VduseError } from '../../base/errors.js';
import { closeFd } from '../../native/fd.js';
import { connectUnix, socketPair } from '../../native/unix-socket.js';
import { hasFeature } from '../../virtqueue/layout.js';
import { MessageStream } from './message-stream.js';
import {
  BackendRequest,
  CONFIG,
  FrontendRequest,
  MessageFlag,
  NO_FD,
  ProtocolFeature,
  REGION,
  regionsOffset,
  VRING_ADDRESS,
} from './protocol.js';
import type { RegionDescription, VringAddresses } from './request.js';

/** Memory to share: a region, and the file that it is in, which stays the caller's. */
export interface SharedRegion extends RegionDescription {
  readonly fd: number;
}

export interface FrontendVring {
  readonly index: number;
  readonly size: number;
  readonly addresses: VringAddresses;
  readonly availIndex: number;
  /** Eventfds, which stay the caller's; undefined: the side that would wait for it polls. */
  readonly kickFd: number | undefined;
  readonly callFd: number | undefined;
}

function u64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value, true);
  return bytes;
}

function state(index: number, number: number): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, index, true);
  view.setUint32(4, number, true);
  return bytes;
}

function encodeRegions(regions: readonly RegionDescription[], isTable: boolean): Uint8Array {
  const bytes = new Uint8Array(regionsOffset + REGION.bytes * regions.length);
  const view = new DataView(bytes.buffer);
  if (isTable) {
    view.setUint32(0, regions.length, true);
  }
  for (const [n, region] of regions.entries()) {
    const at = regionsOffset + n * REGION.bytes;
    view.setBigUint64(at + REGION.guestAddress, BigInt(region.guestAddress), true);
    view.setBigUint64(at + REGION.length, BigInt(region.length), true);
    view.setBigUint64(at + REGION.userAddress, BigInt(region.userAddress), true);
    view.setBigUint64(at + REGION.fileOffset, BigInt(region.fileOffset), true);
  }
  return bytes;
}

function encodeAddresses(index: number, addresses: VringAddresses): Uint8Array {
  const bytes = new Uint8Array(VRING_ADDRESS.bytes);
  const view = new DataView(bytes.buffer);
  view.setUint32(VRING_ADDRESS.index, index, true);
  view.setBigUint64(VRING_ADDRESS.descriptor, BigInt(addresses.descriptor), true);
  view.setBigUint64(VRING_ADDRESS.used, BigInt(addresses.used), true);
  view.setBigUint64(VRING_ADDRESS.available, BigInt(addresses.available), true);
  return bytes;
}

export class VhostUserFrontend {
  readonly #stream: MessageStream;
  #protocolFeatures = 0n;
  #channel: MessageStream | undefined;
  /** Requests go out one at a time: answers do not say what they answer. */
  #turn: Promise<unknown> = Promise.resolve();

  /** Takes a connected socket over; `close` closes it. */
  constructor(fd: number) {
    this.#stream = new MessageStream(fd);
  }

  /** Connects to a back-end that listens. */
  static connect(path: string): VhostUserFrontend {
    return new VhostUserFrontend(connectUnix(path));
  }

  getFeatures(): Promise<bigint> {
    return this.#askU64(FrontendRequest.GET_FEATURES);
  }

  setFeatures(features: bigint): Promise<void> {
    return this.send(FrontendRequest.SET_FEATURES, u64(features));
  }

  setOwner(): Promise<void> {
    return this.send(FrontendRequest.SET_OWNER);
  }

  getProtocolFeatures(): Promise<bigint> {
    return this.#askU64(FrontendRequest.GET_PROTOCOL_FEATURES);
  }

  async setProtocolFeatures(features: bigint): Promise<void> {
    await this.send(FrontendRequest.SET_PROTOCOL_FEATURES, u64(features));
    this.#protocolFeatures = features;
  }

  async getQueueCount(): Promise<number> {
    return Number(await this.#askU64(FrontendRequest.GET_QUEUE_NUM));
  }

  async getMemorySlots(): Promise<number> {
    return Number(await this.#askU64(FrontendRequest.GET_MAX_MEM_SLOTS));
  }

  async getStatus(): Promise<number> {
    return Number(await this.#askU64(FrontendRequest.GET_STATUS));
  }

  setStatus(status: number): Promise<void> {
    return this.send(FrontendRequest.SET_STATUS, u64(BigInt(status)));
  }

  resetDevice(): Promise<void> {
    return this.send(FrontendRequest.RESET_DEVICE);
  }

  /** Part of the configuration space. */
  async getConfig(offset: number, length: number): Promise<Uint8Array> {
    const payload = new Uint8Array(CONFIG.bytes + length);
    const view = new DataView(payload.buffer);
    view.setUint32(CONFIG.offset, offset, true);
    view.setUint32(CONFIG.size, length, true);
    return (await this.ask(FrontendRequest.GET_CONFIG, payload)).subarray(CONFIG.bytes);
  }

  setMemoryTable(regions: readonly SharedRegion[]): Promise<void> {
    const fds = regions.map(({ fd }) => fd);
    return this.send(FrontendRequest.SET_MEM_TABLE, encodeRegions(regions, true), fds);
  }

  addMemory(region: SharedRegion): Promise<void> {
    return this.send(FrontendRequest.ADD_MEM_REG, encodeRegions([region], false), [region.fd]);
  }

  removeMemory(region: RegionDescription): Promise<void> {
    return this.send(FrontendRequest.REM_MEM_REG, encodeRegions([region], false));
  }

  /** Sets a ring up and starts it; it runs when it is enabled too. */
  async startVring(vring: FrontendVring): Promise<void> {
    const { index } = vring;
    await this.send(FrontendRequest.SET_VRING_NUM, state(index, vring.size));
    await this.send(FrontendRequest.SET_VRING_BASE, state(index, vring.availIndex));
    await this.send(FrontendRequest.SET_VRING_ADDR, encodeAddresses(index, vring.addresses));
    await this.setCall(index, vring.callFd);
    await this.setKick(index, vring.kickFd);
  }

  setKick(index: number, fd: number | undefined): Promise<void> {
    return this.#setFd(FrontendRequest.SET_VRING_KICK, index, fd);
  }

  setCall(index: number, fd: number | undefined): Promise<void> {
    return this.#setFd(FrontendRequest.SET_VRING_CALL, index, fd);
  }

  /** An eventfd that the back-end signals when the ring is broken. */
  setError(index: number, fd: number | undefined): Promise<void> {
    return this.#setFd(FrontendRequest.SET_VRING_ERR, index, fd);
  }

  enableVring(index: number, enabled: boolean): Promise<void> {
    return this.send(FrontendRequest.SET_VRING_ENABLE, state(index, enabled ? 1 : 0));
  }

  /** Stops a ring. Returns the available index that it goes on from. */
  async stopVring(index: number): Promise<number> {
    const payload = await this.ask(FrontendRequest.GET_VRING_BASE, state(index, 0));
    return new DataView(payload.buffer, payload.byteOffset).getUint32(4, true);
  }

  /** Opens the channel on which the back-end tells of another configuration space. */
  async onConfigChange(callback: () => void): Promise<void> {
    const [own, passed] = socketPair();
    this.#channel?.close();
    const channel = new MessageStream(own);
    this.#channel = channel;
    try {
      await this.send(FrontendRequest.SET_BACKEND_REQ_FD, undefined, [passed]);
    } finally {
      closeFd(passed);
    }
    void this.#listen(channel, callback);
  }

  /** Sends a request, and waits for its acknowledgement where the back-end gives one. Throws PROTOCOL without. */
  send(request: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<void> {
    return this.#inTurn(async () => {
      const acknowledged = hasFeature(this.#protocolFeatures, ProtocolFeature.REPLY_ACK);
      const flags = MessageFlag.VERSION | (acknowledged ? MessageFlag.NEED_REPLY : 0);
      this.#stream.send({ request, flags, ...(payload === undefined ? {} : { payload }) }, fds);
      if (acknowledged && (await this.#reply(request)).some((byte) => byte !== 0)) {
        throw new VduseError('PROTOCOL', `the back-end refused request ${request}`);
      }
    });
  }

  /** Sends a request that has an answer of its own. */
  ask(request: number, payload?: Uint8Array): Promise<Uint8Array> {
    return this.#inTurn(async () => {
      this.#stream.send({
        request,
        flags: MessageFlag.VERSION,
        ...(payload === undefined ? {} : { payload }),
      });
      return this.#reply(request);
    });
  }

  /** Goes away as a process that ends does. */
  close(): void {
    this.#channel?.close();
    this.#stream.close();
  }

  async #askU64(request: number): Promise<bigint> {
    const payload = await this.ask(request);
    return new DataView(payload.buffer, payload.byteOffset).getBigUint64(0, true);
  }

  #setFd(request: number, index: number, fd: number | undefined): Promise<void> {
    const value = BigInt(fd === undefined ? index | NO_FD : index);
    return this.send(request, u64(value), fd === undefined ? [] : [fd]);
  }

  async #reply(request: number): Promise<Uint8Array> {
    const message = await this.#stream.next();
    if (message === undefined || message.request !== request || (message.flags & MessageFlag.REPLY) === 0) {
      throw new VduseError(
        'PROTOCOL',
        message === undefined
          ? `the back-end has ended the connection after request ${request}`
          : `message ${message.request} is no answer to request ${request}`,
      );
    }
    return message.payload;
  }

  async #listen(channel: MessageStream, callback: () => void): Promise<void> {
    try {
      for (let message = await channel.next(); message !== undefined; message = await channel.next()) {
        if (message.request === BackendRequest.CONFIG_CHANGE) {
          callback();
        }
      }
    } catch {
      // The back-end has broken the channel: nothing is told any more.
    }
    channel.close();
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => {});
    return result;
  }
}
