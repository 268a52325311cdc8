/** A virtio-blk device on the VDUSE transport, over the fake of a driver, with a front-end behind it. */
import { pino } from 'pino';
import type { BlockNode } from '../../src/block/node.js';
import { BlkDevice } from '../../src/device/blk/blk-device.js';
import type { QueueHosts } from '../../src/device/queue-host.js';
import { VduseTransport } from '../../src/transport/vduse/vduse-transport.js';
import { BlkClient } from './blk-client.js';
import { FakeVduse } from './fake-vduse-kernel.js';
import { FrontEnd } from './front-end.js';
import { isClosed, willClose } from './leftovers.js';

export interface LogLine {
  readonly level: number;
  readonly msg: string;
}

export interface VduseSetupOptions {
  readonly node: BlockNode;
  readonly hosts: QueueHosts;
  readonly queueCount?: number;
  readonly kernel?: FakeVduse;
  /** What of the driver's memory is mapped at first. */
  readonly memory?: 'all' | 'rings' | 'none';
  readonly apiVersion?: number;
  readonly name?: string;
}

export class VduseSetup {
  readonly kernel: FakeVduse;
  readonly device: BlkDevice;
  readonly frontEnd: FrontEnd;
  readonly client: BlkClient;
  /** Warnings and worse. */
  readonly log: LogLine[] = [];
  readonly #node: BlockNode;
  readonly #options: VduseSetupOptions;
  transport: VduseTransport | undefined;

  /** The device and its front-end; `create` makes the transport. */
  static async make(options: VduseSetupOptions): Promise<VduseSetup> {
    const { node, hosts, queueCount = 1 } = options;
    const log: LogLine[] = [];
    const logger = pino(
      { level: 'warn', base: null },
      { write: (line: string) => void log.push(JSON.parse(line)) },
    );
    const device = await BlkDevice.create({
      node,
      hosts,
      logger,
      writable: !node.readOnly,
      queueCount,
      queueSize: 16,
    });
    return new VduseSetup(options, device, { logger, log });
  }

  static async create(options: VduseSetupOptions): Promise<VduseSetup & { transport: VduseTransport }> {
    const setup = await VduseSetup.make(options);
    return Object.assign(setup, { transport: await setup.createTransport() });
  }

  private constructor(
    options: VduseSetupOptions,
    device: BlkDevice,
    readonly logging: { logger: pino.Logger; log: LogLine[] },
  ) {
    this.#options = options;
    this.#node = options.node;
    this.device = device;
    this.log = logging.log;
    this.kernel = options.kernel ?? new FakeVduse();
    this.frontEnd = new FrontEnd(device, { shared: true, dataBytes: 1 << 20 });
    this.kernel.connect(this.frontEnd, options.memory);
    this.client = new BlkClient(this.frontEnd);
    // The transport stops the device, not the front-end.
    isClosed(this.frontEnd);
    willClose(this, () => this.close());
  }

  async createTransport(): Promise<VduseTransport> {
    this.transport = await VduseTransport.create(this.transportOptions());
    return this.transport;
  }

  transportOptions(): Parameters<typeof VduseTransport.create>[0] {
    const { apiVersion, name = 'disk0' } = this.#options;
    return {
      name,
      device: this.device,
      logger: this.logging.logger,
      kernel: this.kernel,
      ...(apiVersion === undefined ? {} : { apiVersion }),
    };
  }

  /** Ends the transport and gives back the front-end and the node. */
  async close(): Promise<void> {
    try {
      await this.transport?.close();
    } finally {
      await this.release();
    }
  }

  async release(): Promise<void> {
    isClosed(this);
    for (const queue of this.frontEnd.queues) {
      queue.close();
    }
    this.frontEnd.memory.close();
    await this.#node.close();
  }
}
