/** A vhost-user back-end over a block node, and a device that reaches it through its socket as a front-end does. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Logger, silentLogger } from '../../src/base/log.js';
import type { BlockNode } from '../../src/block/node.js';
import { BlkDevice, type BlkDeviceOptions } from '../../src/device/blk/blk-device.js';
import type { QueueHosts } from '../../src/device/queue-host.js';
import type {
  Activation,
  QuiesceOptions,
  QuiesceResult,
  VirtioDevice,
} from '../../src/device/virtio-device.js';
import { VhostUserFrontend } from '../../src/transport/vhost-user/frontend.js';
import { offeredProtocolFeatures, PROTOCOL_FEATURES_BIT } from '../../src/transport/vhost-user/protocol.js';
import { VhostUserTransport } from '../../src/transport/vhost-user/vhost-user-transport.js';
import type { FrontEndMemory } from './front-end-memory.js';

/** What a front-end's own addresses are beside the guest's. */
export const userOffset = 2 ** 44;

export interface Served {
  readonly device: BlkDevice;
  readonly transport: VhostUserTransport;
  readonly path: string;
  close(): Promise<void>;
}

export interface ServeOptions extends Partial<Omit<BlkDeviceOptions, 'hosts' | 'node' | 'logger'>> {
  readonly node: BlockNode;
  readonly hosts: QueueHosts;
  readonly logger?: Logger;
  readonly drainTimeoutMs?: number;
}

/** Makes a device and serves it. */
export async function serveVhostUser(options: ServeOptions): Promise<Served> {
  const { drainTimeoutMs, logger = silentLogger, ...rest } = options;
  const directory = mkdtempSync(join(tmpdir(), 'vduse-vhost-user-'));
  const path = join(directory, 'socket');
  const device = await BlkDevice.create({ logger, writable: !options.node.readOnly, ...rest });
  const transport = new VhostUserTransport({
    device,
    logger,
    name: 'disk',
    address: { type: 'unix', path, server: true },
    ...(drainTimeoutMs === undefined ? {} : { drainTimeoutMs }),
  });
  return {
    device,
    transport,
    path,
    async close() {
      await transport.close();
      rmSync(directory, { recursive: true });
    },
  };
}

/** How a front-end differs from QEMU. */
export interface RemoteOptions {
  /** Protocol features that it does not accept. */
  readonly protocolFeatures?: bigint;
  /** It gives its regions as a table, or adds them one by one, or at first only the one that the rings are in. */
  readonly memory?: 'table' | 'regions' | 'rings-only';
  /** It does not know of protocol features in its SET_FEATURES, so that its rings need no enabling. */
  readonly neverEnables?: boolean;
  /** It does not kick. */
  readonly withoutKick?: boolean;
}

/** The device behind a socket, as the test front-end wants to see one: its steps are vhost-user requests. */
export class RemoteDevice implements VirtioDevice {
  readonly deviceId = 2;
  readonly vendorId = 0;
  readonly config = new Uint8Array(0);
  readonly queueSizeMax = 128;
  readonly deviceFeatures: bigint;
  readonly queueCount: number;
  readonly frontend: VhostUserFrontend;
  /** Shared with the back-end from the first activation on. */
  memory: FrontEndMemory | undefined;
  readonly #options: RemoteOptions;
  #shared = false;
  #running: readonly number[] = [];

  static async connect(path: string, options: RemoteOptions = {}): Promise<RemoteDevice> {
    const frontend = VhostUserFrontend.connect(path);
    const features = await frontend.getFeatures();
    const offered = await frontend.getProtocolFeatures();
    await frontend.setProtocolFeatures(offered & (options.protocolFeatures ?? offeredProtocolFeatures));
    await frontend.setOwner();
    return new RemoteDevice(frontend, features, await frontend.getQueueCount(), options);
  }

  private constructor(
    frontend: VhostUserFrontend,
    features: bigint,
    queueCount: number,
    options: RemoteOptions,
  ) {
    this.frontend = frontend;
    this.deviceFeatures = features & ~(1n << BigInt(PROTOCOL_FEATURES_BIT));
    this.queueCount = queueCount;
    this.#options = options;
  }

  async activate({ features, queues }: Activation): Promise<void> {
    const { frontend } = this;
    const { neverEnables = false, withoutKick = false } = this.#options;
    await frontend.setFeatures(neverEnables ? features : features | (1n << BigInt(PROTOCOL_FEATURES_BIT)));
    await this.#shareMemory();
    for (const queue of queues) {
      await frontend.startVring({
        index: queue.index,
        size: queue.size,
        availIndex: queue.availIndex,
        addresses: {
          descriptor: queue.descriptorAddress + userOffset,
          available: queue.driverAddress + userOffset,
          used: queue.deviceAddress + userOffset,
        },
        kickFd: withoutKick ? undefined : queue.kickFd,
        callFd: queue.notifier.kind === 'eventfd' ? queue.notifier.fd : undefined,
      });
      if (!neverEnables) {
        await frontend.enableVring(queue.index, true);
      }
    }
    this.#running = queues.map(({ index }) => index);
  }

  async quiesce(_options: QuiesceOptions): Promise<QuiesceResult> {
    const availIndices = new Map<number, number>();
    for (const index of this.#running) {
      availIndices.set(index, await this.frontend.stopVring(index));
    }
    this.#running = [];
    return { drained: true, availIndices };
  }

  /** As QEMU does for another device on the same connection. */
  async begin(): Promise<void> {
    await this.frontend.setOwner();
    this.forget();
    this.#shared = false;
  }

  /** The rings do not run any more: the device was reset, or has gone. */
  forget(): void {
    this.#running = [];
  }

  /** The front-end's regions as requests name them. */
  regions(): { guestAddress: number; length: number; userAddress: number; fileOffset: number; fd: number }[] {
    const memory = this.memory!;
    return memory.regions.map((region) => ({
      guestAddress: region.start,
      length: region.length,
      userAddress: region.start + userOffset,
      fileOffset: memory.fileOffset(region),
      fd: memory.file!,
    }));
  }

  async #shareMemory(): Promise<void> {
    const { memory = 'table' } = this.#options;
    const regions = this.#shared ? [] : this.regions();
    this.#shared = true;
    if (memory === 'table' && regions.length > 0) {
      await this.frontend.setMemoryTable(regions);
      return;
    }
    for (const region of memory === 'rings-only' ? regions.slice(0, 1) : regions) {
      await this.frontend.addMemory(region);
    }
  }

  setListener(): void {}
  updateMemory(): void {}
  availIndex(): number {
    return 0;
  }
}
