/** A whole disk without a kernel: block node, virtio-blk device, VDUSE transport, and the driver in software. */
import assert from 'node:assert/strict';
import { silentLogger } from '../../src/base/log.js';
import type { BlockNode } from '../../src/block/node.js';
import { BlkDevice, type BlkDeviceOptions } from '../../src/device/blk/blk-device.js';
import type { QueueHosts } from '../../src/device/queue-host.js';
import type { BlkFrontend, BlkFrontendOptions } from '../../src/software-vduse/blk-frontend.js';
import { SoftwareVduse, type SoftwareVduseOptions } from '../../src/software-vduse/software-vduse.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import { VduseTransport } from '../../src/transport/vduse/vduse-transport.js';
import { isVduseError } from './vduse-error.js';

export interface SoftwareDiskOptions {
  readonly node: BlockNode;
  readonly hosts: QueueHosts;
  readonly kernel?: Omit<SoftwareVduseOptions, 'busDriver'>;
  readonly frontend?: BlkFrontendOptions;
  readonly device?: Partial<Omit<BlkDeviceOptions, 'node' | 'hosts'>>;
}

export class SoftwareDisk {
  readonly name = 'disk';
  readonly kernel: SoftwareVduse;
  readonly bus: VirtioVdpa;
  readonly #options: SoftwareDiskOptions;
  #device: BlkDevice | undefined;
  #transport: VduseTransport | undefined;

  static async start(options: SoftwareDiskOptions): Promise<SoftwareDisk> {
    const disk = new SoftwareDisk(options);
    const { name, kernel } = disk;
    const device = await disk.#makeDevice();
    disk.#transport = await VduseTransport.create({ name, device, kernel, logger: silentLogger });
    await disk.#transport.attach();
    return disk;
  }

  private constructor(options: SoftwareDiskOptions) {
    this.#options = options;
    this.bus = new VirtioVdpa(options.frontend);
    this.kernel = new SoftwareVduse({ ...options.kernel, busDriver: this.bus });
  }

  get transport(): VduseTransport {
    assert(this.#transport !== undefined);
    return this.#transport;
  }

  get device(): BlkDevice {
    assert(this.#device !== undefined);
    return this.#device;
  }

  get frontend(): BlkFrontend {
    const frontend = this.bus.disk(this.name);
    assert(frontend !== undefined, 'no driver has the disk');
    return frontend;
  }

  /** The process's side goes, and the device stays on the bus with whatever is in flight. */
  async leave(): Promise<void> {
    await assert.rejects(this.transport.close(), isVduseError('BUSY'));
  }

  /** Another process's side takes the device that was left. */
  async adopt(): Promise<void> {
    const { name, kernel } = this;
    const device = await this.#makeDevice();
    this.#transport = await VduseTransport.adopt({ name, device, kernel, logger: silentLogger });
  }

  async close(): Promise<void> {
    if (this.kernel.isOnBus(this.name)) {
      await this.transport.detach();
    }
    await this.transport.close();
  }

  async #makeDevice(): Promise<BlkDevice> {
    const { node, hosts, device } = this.#options;
    this.#device = await BlkDevice.create({ node, hosts, logger: silentLogger, writable: true, ...device });
    return this.#device;
  }
}
