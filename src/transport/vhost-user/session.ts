/**
 * One front-end from its connection to its end: its messages, one after the other, as steps of the rings, the memory
 * and the device. A front-end that breaks a rule loses its connection, and everything it had set up with it.
 */
import { setImmediate } from 'node:timers/promises';
import { errorMessage, VduseError } from '../../base/errors.js';
import type { Logger } from '../../base/log.js';
import { checkFeatures } from '../../device/device-controller.js';
import { type DeviceListener, DeviceStatus, type VirtioDevice } from '../../device/virtio-device.js';
import { closeFd } from '../../native/fd.js';
import { hasFeature } from '../../virtqueue/layout.js';
import { BackendChannel } from './backend-channel.js';
import { MemoryTable } from './memory-table.js';
import { MessageStream, type VhostUserMessage } from './message-stream.js';
import { PassedFds } from './passed-fds.js';
import {
  MessageFlag,
  memorySlotsMax,
  offeredProtocolFeatures,
  PROTOCOL_FEATURES_BIT,
  ProtocolFeature,
} from './protocol.js';
import { replyConfig, replyState, replyU64 } from './reply.js';
import { decodeRequest, type RegionDescription, type VhostUserRequest } from './request.js';
import type { Vring } from './vring.js';
import { VringSet } from './vring-set.js';

export interface SessionOptions {
  readonly device: VirtioDevice;
  readonly logger: Logger;
  /** Of the export, for log lines. */
  readonly name: string;
  /** How long requests in flight may take to end where a ring is stopped. Milliseconds. */
  readonly drainTimeoutMs: number;
}

/** What becomes of a request: the payload of its answer, or whether it was done, for a front-end that asks. */
type Outcome = Uint8Array | 'done' | 'refused';

type Handler<Request> = (request: Request, fds: PassedFds) => Outcome | Promise<Outcome>;
type Handlers = {
  readonly [Kind in VhostUserRequest['kind']]: Handler<Extract<VhostUserRequest, { kind: Kind }>>;
};

/** Between two looks whether the front-end's memory is still whole. */
const memoryCheckMs = 1000;

const protocolFeaturesMask = 1n << BigInt(PROTOCOL_FEATURES_BIT);

/** Throws PROTOCOL. */
function checkOffered(features: bigint, offered: bigint): void {
  const unknown = features & ~offered;
  if (unknown !== 0n) {
    throw new VduseError('PROTOCOL', `features that were not offered: 0x${unknown.toString(16)}`);
  }
}

export class VhostUserSession implements DeviceListener {
  readonly #device: VirtioDevice;
  readonly #logger: Logger;
  readonly #name: string;
  readonly #stream: MessageStream;
  readonly #vrings: VringSet;
  #memory = new MemoryTable();
  #channel: BackendChannel | undefined;
  #features = 0n;
  #protocolFeatures = 0n;
  #status = 0;
  #dropped = false;

  /** Takes the connected socket over. */
  constructor(fd: number, options: SessionOptions) {
    this.#stream = new MessageStream(fd);
    this.#device = options.device;
    this.#logger = options.logger;
    this.#name = options.name;
    this.#vrings = new VringSet(options.device, options.drainTimeoutMs);
  }

  /** Serves the front-end until it goes or breaks a rule. Nothing of it is left then. Never rejects. */
  async run(): Promise<void> {
    this.#device.setListener(this);
    const checks = setInterval(() => this.#checkMemory(), memoryCheckMs);
    try {
      for (;;) {
        const message = await this.#stream.next();
        if (message === undefined) {
          break;
        }
        await this.#handle(message);
        // A front-end that never stops talking takes turns with all the others.
        await setImmediate();
      }
    } catch (error) {
      this.#logger.warn({ export: this.#name }, `'${this.#name}': front-end dropped: ${errorMessage(error)}`);
    }
    clearInterval(checks);
    await this.#end();
  }

  /** Ends the session after the message that is being handled. `run` tells when it is over. */
  close(): void {
    this.#stream.close();
  }

  // DeviceListener

  onConfigChange(): void {
    try {
      this.#channel?.notifyConfigChange();
    } catch (error) {
      this.#logger.warn(
        { export: this.#name },
        `'${this.#name}': the front-end was not told of the change: ${errorMessage(error)}`,
      );
    }
  }

  onNeedsReset(reason: string, queue: number): void {
    this.#status |= DeviceStatus.NEEDS_RESET;
    this.#vrings.get(queue).signalError();
    this.#logger.error(
      { export: this.#name },
      `'${this.#name}': the driver broke the device's rules: ${reason}`,
    );
    this.#checkMemory();
  }

  onMemoryMiss(): void {
    // A region may have been added that the queue's thread had not heard of yet; there is no other memory.
    this.#device.updateMemory(this.#memory.regions);
  }

  /** What a front-end shared is lost once it has cut the file: the sooner it goes, the fewer zeroes reach the disk. */
  #checkMemory(): void {
    const { damage } = this.#memory;
    if (damage !== undefined && !this.#dropped) {
      this.#dropped = true;
      this.#logger.warn({ export: this.#name }, `'${this.#name}': front-end dropped: ${damage}`);
      this.close();
    }
  }

  readonly #handlers: Handlers = {
    'get-features': () => replyU64(this.#device.deviceFeatures | protocolFeaturesMask),
    'set-features': ({ features }) => this.#setFeatures(features),
    'get-protocol-features': () => replyU64(offeredProtocolFeatures),
    'set-protocol-features': ({ features }) => this.#setProtocolFeatures(features),
    'set-owner': () => this.#begin(),
    // Deprecated: back-ends are to ignore it.
    'reset-owner': () => 'done',
    'reset-device': () => this.#reset(),
    'get-status': () => replyU64(BigInt(this.#status)),
    'set-status': ({ status }) => this.#setStatus(status),
    'get-queue-num': () => replyU64(BigInt(this.#device.queueCount)),
    'get-max-mem-slots': () => replyU64(BigInt(memorySlotsMax)),
    'set-mem-table': ({ regions }, fds) => this.#setMemoryTable(regions, fds),
    'add-mem-reg': ({ region }, fds) => this.#addRegion(region, fds),
    'rem-mem-reg': ({ region }) => this.#withQueuesStopped(() => this.#memory.remove(region)),
    'set-backend-req-fd': (_, fds) => this.#setChannel(fds.take()),
    'get-config': (request) => replyConfig(request, this.#device.config),
    // The device has no field that the driver may write: CONFIG_WCE is not offered.
    'set-config': () => 'refused',
    'set-vring-num': ({ index, size }) => this.#configure(index, (vring) => vring.setSize(size)),
    'set-vring-addr': ({ index, addresses }) =>
      this.#configure(index, (vring) => vring.setAddresses(addresses)),
    'set-vring-base': ({ index, availIndex }) => this.#configure(index, (vring) => vring.setBase(availIndex)),
    'get-vring-base': ({ index }) => this.#stopVring(this.#vrings.get(index)),
    'set-vring-enable': ({ index, enabled }) => this.#enableVring(this.#vrings.get(index), enabled),
    'set-vring-fd': (request, fds) => this.#setVringFd(request, fds),
  };

  async #handle(message: VhostUserMessage): Promise<void> {
    const fds = new PassedFds(message.fds);
    try {
      const request = decodeRequest(message);
      this.#logger.debug({ export: this.#name, request }, 'vhost-user request');
      const handle = this.#handlers[request.kind] as Handler<VhostUserRequest>;
      this.#answer(message, await handle(request, fds));
    } catch (error) {
      this.#tellFailure(message);
      throw error;
    } finally {
      fds.close();
    }
  }

  #answer(message: VhostUserMessage, outcome: Outcome): void {
    const { request } = message;
    const flags = MessageFlag.VERSION | MessageFlag.REPLY;
    const wanted =
      (message.flags & MessageFlag.NEED_REPLY) !== 0 &&
      hasFeature(this.#protocolFeatures, ProtocolFeature.REPLY_ACK);
    if (typeof outcome === 'object') {
      this.#stream.send({ request, flags, payload: outcome });
    } else if (wanted) {
      this.#stream.send({ request, flags, payload: replyU64(outcome === 'done' ? 0n : 1n) });
    }
  }

  /** One that waits for an answer gets it before its connection ends. */
  #tellFailure(message: VhostUserMessage): void {
    try {
      this.#answer(message, 'refused');
    } catch (error) {
      this.#logger.debug({ export: this.#name }, errorMessage(error));
    }
  }

  #setFeatures(features: bigint): Outcome {
    const accepted = features & ~protocolFeaturesMask;
    if (this.#vrings.running.length > 0 && accepted !== this.#features) {
      throw new VduseError('PROTOCOL', 'SET_FEATURES: other features while rings run');
    }
    checkOffered(accepted, this.#device.deviceFeatures);
    this.#features = accepted;
    // "must enable all rings immediately": such a front-end does not know of enabling.
    this.#vrings.enabledByDefault = (features & protocolFeaturesMask) === 0n;
    return 'done';
  }

  #setProtocolFeatures(features: bigint): Outcome {
    checkOffered(features, offeredProtocolFeatures);
    this.#protocolFeatures = features;
    return 'done';
  }

  async #setStatus(status: number): Promise<Outcome> {
    if (status === 0) {
      return this.#reset();
    }
    if ((status & DeviceStatus.FAILED) !== 0) {
      await this.#vrings.stop(this.#vrings.running);
    }
    this.#status = status | (this.#status & DeviceStatus.NEEDS_RESET);
    return 'done';
  }

  /**
   * "Marks the sender as the front-end that owns of the session": QEMU uses one connection for one device after the
   * other, and a new one adds its memory anew.
   */
  async #begin(): Promise<Outcome> {
    await this.#vrings.reset();
    this.#memory.close();
    return 'done';
  }

  /** The memory stays: QEMU tells only what changes in it, whatever is reset meanwhile. */
  async #reset(): Promise<Outcome> {
    await this.#vrings.reset();
    this.#status = 0;
    return 'done';
  }

  #setChannel(fd: number): Outcome {
    this.#channel?.close();
    this.#channel = new BackendChannel(fd);
    return 'done';
  }

  #addRegion(region: RegionDescription, fds: PassedFds): Outcome {
    const fd = fds.take();
    try {
      this.#memory.add(region, fd);
    } finally {
      // The map holds its file.
      closeFd(fd);
    }
    // Queues that run learn of it; one that meets it earlier asks again.
    this.#device.updateMemory(this.#memory.regions);
    return 'done';
  }

  #setMemoryTable(regions: readonly RegionDescription[], fds: PassedFds): Promise<Outcome> {
    return this.#withQueuesStopped(() => {
      this.#memory.close();
      for (const region of regions) {
        this.#addRegion(region, fds);
      }
    });
  }

  /** Changes the memory under queues that run: stop, swap, go on. */
  async #withQueuesStopped(change: () => void): Promise<Outcome> {
    const running = this.#vrings.running;
    await this.#vrings.stop(running);
    change();
    await this.#vrings.start(running, this.#features, this.#memory);
    return 'done';
  }

  /** Sets up a ring, which must not run: only its descriptors may change then. */
  #configure(index: number, set: (vring: Vring) => void): Outcome {
    set(this.#vrings.get(index));
    return 'done';
  }

  async #stopVring(vring: Vring): Promise<Outcome> {
    vring.started = false;
    await this.#vrings.stop([vring]);
    return replyState(vring.index, vring.availIndex);
  }

  async #enableVring(vring: Vring, enabled: boolean): Promise<Outcome> {
    vring.enabled = enabled;
    await this.#runOrNot(vring);
    return 'done';
  }

  async #setVringFd(
    request: Extract<VhostUserRequest, { kind: 'set-vring-fd' }>,
    fds: PassedFds,
  ): Promise<Outcome> {
    const vring = this.#vrings.get(request.index);
    const take = (): number | undefined => (request.hasFd ? fds.take() : undefined);
    switch (request.fd) {
      case 'kick':
        await this.#vrings.stop([vring]);
        vring.setKick(take());
        vring.started = true;
        break;
      case 'call':
        if (vring.isNotified !== request.hasFd) {
          await this.#vrings.stop([vring]);
        }
        vring.setCall(take());
        break;
      case 'err':
        vring.setError(take());
        break;
    }
    await this.#runOrNot(vring);
    return 'done';
  }

  /** "Ring states": a ring is processed while it is both started and enabled. */
  async #runOrNot(vring: Vring): Promise<void> {
    const should = vring.started && (vring.enabled || this.#vrings.enabledByDefault);
    if (should && !vring.running) {
      checkFeatures(this.#features, this.#device.deviceFeatures);
      await this.#vrings.start([vring], this.#features, this.#memory);
    } else if (!should) {
      await this.#vrings.stop([vring]);
    }
  }

  async #end(): Promise<void> {
    try {
      await this.#vrings.reset();
    } catch (error) {
      this.#logger.error({ export: this.#name }, `'${this.#name}': ${errorMessage(error)}`);
    }
    this.#device.setListener(undefined);
    if (this.#vrings.drained) {
      this.#memory.close();
    }
    this.#channel?.close();
    this.#stream.close();
  }
}
