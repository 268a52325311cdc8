/**
 * A virtio device on VDUSE: makes it known to the driver, answers the driver's messages, and puts it on the
 * vDPA bus. The driver is Linux's module or one that plays it; the transport cannot tell.
 */
import { errorMessage, VduseError } from '../../base/errors.js';
import type { Logger } from '../../base/log.js';
import { type ActivationSource, DeviceController } from '../../device/device-controller.js';
import type {
  Activation,
  DeviceListener,
  QueueActivation,
  VirtioDevice,
} from '../../device/virtio-device.js';
import { DeviceStatus } from '../../device/virtio-device.js';
import { GuestMemory, MemoryAccess, type MemoryRegion } from '../../memory/guest-memory.js';
import { closeFd, createEventFd } from '../../native/fd.js';
import type { FdWatcher } from '../../native/fd-watcher.js';
import type { VduseQueueInfo, VduseRequest } from '../../native/vduse-abi.js';
import { linuxVduse, type VduseKernel } from '../../native/vduse-kernel.js';
import { RING_F } from '../../virtqueue/layout.js';
import { VduseControl } from './control.js';
import type { VduseDeviceFile } from './device-file.js';
import { checkDeviceName } from './device-name.js';
import { VduseMemoryMap } from './memory-map.js';
import { type MessageAnswer, MessageLoop } from './message-loop.js';
import { openDeviceFile } from './open-device.js';

export interface VduseTransportOptions {
  readonly name: string;
  readonly device: VirtioDevice;
  readonly logger: Logger;
  /** Linux's VDUSE when absent. */
  readonly kernel?: VduseKernel;
  /** The processors that the queues' interrupts are taken on; the driver's own choice when absent. */
  readonly irqCpus?: readonly number[];
  /** The newest VDUSE API version to speak; what both sides know when absent. */
  readonly apiVersion?: number;
}

/** Alignment of the rings that the driver is asked for; kernels refuse 0. */
const queueAlignment = 4096;
/** Between two looks whether the driver's memory is still whole. */
const memoryCheckMs = 1000;
/** How much of a message's time a step may take: the answer must not be late. */
const messageShare = 0.7;

/** Destroys a device that was not finished. Where even that fails, the first error is the one to tell. */
function destroyUnfinished(control: VduseControl, options: VduseTransportOptions): void {
  try {
    control.destroy(options.name);
  } catch (error) {
    options.logger.warn({ device: options.name }, errorMessage(error));
  }
}

/** VQ_GET_INFO says 0 for a queue that ran before: what was not completed follows the last used element. */
function usedIndex(regions: readonly MemoryRegion[], info: VduseQueueInfo): number {
  const memory = new GuestMemory(regions);
  const view = memory.locate(info.deviceAddress, 4, MemoryAccess.READ);
  return view?.getUint16(memory.locatedOffset + 2, true) ?? info.availIndex;
}

export class VduseTransport implements ActivationSource, DeviceListener {
  readonly name: string;
  /** Rejects when the device can't be served any more. Never resolves. */
  readonly failed: Promise<never>;
  readonly #kernel: VduseKernel;
  readonly #control: VduseControl;
  readonly #file: VduseDeviceFile;
  readonly #device: VirtioDevice;
  readonly #logger: Logger;
  readonly #controller: DeviceController;
  readonly #messages: MessageLoop;
  #watcher: FdWatcher | undefined;
  readonly #kickFds = new Map<number, number>();
  readonly #reportFailure: (error: unknown) => void;
  #memory: VduseMemoryMap | undefined;
  #memoryChecks: NodeJS.Timeout | undefined;
  #closed = false;
  /** The driver goes on with a queue that another process has served: its state is in the rings. */
  #adopting = false;

  /** Makes the device and starts to answer its messages. Throws what keeps it from existing; nothing is left then. */
  static async create(options: VduseTransportOptions): Promise<VduseTransport> {
    checkDeviceName(options.name);
    const kernel = options.kernel ?? linuxVduse;
    const control = new VduseControl(kernel, options.apiVersion);
    const { device, name } = options;
    try {
      control.create({
        name,
        vendorId: device.vendorId,
        deviceId: device.deviceId,
        // Data goes through the IOMMU, so the platform's access rules are not an option (VDUSE).
        features: device.deviceFeatures | (1n << BigInt(RING_F.ACCESS_PLATFORM)),
        queueCount: device.queueCount,
        queueAlignment,
        config: device.config,
      });
    } catch (error) {
      control.close();
      throw error;
    }
    let file: VduseDeviceFile | undefined;
    try {
      file = await openDeviceFile({ kernel, name, apiVersion: control.apiVersion });
      for (let index = 0; index < device.queueCount; index++) {
        file.setupQueue(index, device.queueSizeMax);
        if (options.irqCpus !== undefined) {
          kernel.setIrqAffinity(name, index, options.irqCpus);
        }
      }
      const transport = new VduseTransport(options, { kernel, control, file });
      transport.#listen();
      return transport;
    } catch (error) {
      device.setListener(undefined);
      file?.close();
      destroyUnfinished(control, options);
      control.close();
      throw error;
    }
  }

  /**
   * Serves a device that a process left behind: opens it again, and starts it where a driver uses it. VDUSE does
   * not know how far the queues were (it says 0): the device finds that out from the rings.
   */
  static async adopt(options: VduseTransportOptions): Promise<VduseTransport> {
    const kernel = options.kernel ?? linuxVduse;
    const control = new VduseControl(kernel, options.apiVersion);
    let file: VduseDeviceFile | undefined;
    let transport: VduseTransport | undefined;
    try {
      file = await openDeviceFile({ kernel, name: options.name, apiVersion: control.apiVersion });
      transport = new VduseTransport(options, { kernel, control, file });
      await transport.#resume();
      // Only now: the messages that the dead process left unanswered find the device as they expect it.
      transport.#listen();
      return transport;
    } catch (error) {
      if (transport !== undefined) {
        await transport.#controller.stop(transport.#stepMs());
      }
      options.device.setListener(undefined);
      file?.close();
      control.close();
      throw error;
    }
  }

  private constructor(
    options: VduseTransportOptions,
    opened: { kernel: VduseKernel; control: VduseControl; file: VduseDeviceFile },
  ) {
    this.name = options.name;
    this.#kernel = opened.kernel;
    this.#control = opened.control;
    this.#file = opened.file;
    this.#device = options.device;
    this.#logger = options.logger;
    this.#controller = new DeviceController(options.device, this);
    let reportFailure: (error: unknown) => void = () => {};
    this.failed = new Promise<never>((_, reject) => {
      reportFailure = reject;
    });
    this.failed.catch(() => {});
    this.#reportFailure = reportFailure;
    this.#messages = new MessageLoop({
      file: this.#file,
      logger: this.#logger,
      handle: (request) => this.#handle(request),
      onFailure: (error) => {
        this.#watcher?.close();
        this.#reportFailure(error);
      },
    });
    options.device.setListener(this);
  }

  /** Whether a driver uses the device. */
  get active(): boolean {
    return this.#controller.active;
  }

  /** Whether the device is on the vDPA bus, whoever put it there. */
  get isOnBus(): boolean {
    return this.#kernel.isOnBus(this.name);
  }

  /** Puts the device on the vDPA bus, which runs the bus driver's whole probe. */
  async attach(): Promise<void> {
    await this.#kernel.addToBus(this.name);
  }

  /** Takes the device off the bus: the driver ends its requests first, and they are served meanwhile. */
  async detach(): Promise<void> {
    await this.#kernel.removeFromBus(this.name);
    await this.#messages.settled();
  }

  /** Stops serving and destroys the device, which is off the bus: on it, BUSY is thrown and the device is left behind. */
  async close(): Promise<void> {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#watcher?.close();
    await this.#messages.settled();
    await this.#controller.stop(this.#stepMs());
    this.#device.setListener(undefined);
    this.#file.close();
    try {
      this.#control.destroy(this.name);
    } finally {
      this.#control.close();
    }
  }

  // DeviceListener

  onConfigChange(): void {
    if (this.#closed) {
      return;
    }
    this.#file.setConfig(0, this.#device.config);
    this.#file.injectConfigIrq();
  }

  onNeedsReset(reason: string): void {
    // VDUSE has no message by which a device sets DEVICE_NEEDS_RESET: the queue stands until the driver resets.
    this.#logger.error(
      { device: this.name },
      `'${this.name}': the driver broke the device's rules: ${reason}`,
    );
    this.#checkMemory();
  }

  onMemoryMiss(): void {
    if (this.#memory === undefined) {
      return;
    }
    try {
      this.#memory.refresh();
    } catch (error) {
      this.#logger.error({ device: this.name }, errorMessage(error));
    }
    this.#logger.debug({ device: this.name, regions: this.#memory.regions }, 'memory map after a miss');
    this.#device.updateMemory(this.#memory.regions);
  }

  // ActivationSource

  driverFeatures(): bigint {
    return this.#file.driverFeatures();
  }

  prepareActivation(features: bigint, availIndices: ReadonlyMap<number, number>): Activation {
    const memory = new VduseMemoryMap(this.#file);
    this.#memory = memory;
    this.#memoryChecks = setInterval(() => this.#checkMemory(), memoryCheckMs).unref();
    memory.refresh();
    const queues: QueueActivation[] = [];
    for (let index = 0; index < this.#device.queueCount; index++) {
      const info = this.#file.queueInfo(index);
      if (info?.ready !== true) {
        continue;
      }
      const kickFd = createEventFd();
      this.#kickFds.set(index, kickFd);
      this.#file.setKickFd(index, kickFd);
      queues.push({
        index,
        size: info.size,
        descriptorAddress: info.descriptorAddress,
        driverAddress: info.driverAddress,
        deviceAddress: info.deviceAddress,
        availIndex:
          availIndices.get(index) ?? (this.#adopting ? usedIndex(memory.regions, info) : info.availIndex),
        kickFd,
        notifier: this.#kernel.notifier(this.#file.fd, index),
      });
    }
    const { regions } = memory;
    this.#logger.debug(
      { device: this.name, features: `0x${features.toString(16)}`, queues, regions },
      'activation',
    );
    return { features, queues, memory: regions };
  }

  onStopped(drained: boolean): void {
    this.#endMemoryChecks();
    for (const [index, fd] of this.#kickFds) {
      this.#takeKickFd(index);
      closeFd(fd);
    }
    this.#kickFds.clear();
    if (drained) {
      this.#memory?.close();
    } else {
      // The maps stay for what is still in flight: a late transfer must land in the old pages, not in new ones.
      this.#logger.error(
        { device: this.name },
        `'${this.name}': requests in flight did not end in time and were given up`,
      );
    }
    this.#memory = undefined;
  }

  /** What a driver shared is lost once its file is cut: the sooner its queues stop, the fewer zeroes reach the disk. */
  #checkMemory(): void {
    const damage = this.#memory?.damage;
    if (damage === undefined || this.#memoryChecks === undefined) {
      return;
    }
    this.#endMemoryChecks();
    this.#logger.error(
      { device: this.name },
      `'${this.name}': the queues stop until the driver resets them: ${damage}`,
    );
    this.#messages.between(async () => {
      await this.#controller.stop(this.#stepMs());
    });
  }

  #endMemoryChecks(): void {
    clearInterval(this.#memoryChecks);
    this.#memoryChecks = undefined;
  }

  #takeKickFd(index: number): void {
    try {
      this.#file.setKickFd(index, -1);
    } catch (error) {
      this.#logger.debug({ device: this.name, index }, errorMessage(error));
    }
  }

  #stepMs(): number {
    return this.#kernel.messageTimeoutMs(this.name) * messageShare;
  }

  async #handle(request: VduseRequest): Promise<MessageAnswer> {
    switch (request.type) {
      case 'get-vq-state':
        return {
          ok: true,
          queueState: { index: request.index, availIndex: this.#controller.availIndex(request.index) },
        };
      case 'set-status':
        await this.#controller.setStatus(request.status, this.#stepMs());
        return { ok: true };
      case 'update-iotlb':
        await this.#controller.remap(this.#stepMs());
        return { ok: true };
      case 'set-vq-group-asid':
        // There is one group and one address space.
        return { ok: request.group === 0 && request.addressSpace === 0 };
      case 'unknown':
        throw new VduseError('NOT_SUPPORTED', `message type ${request.number} is not known`);
    }
  }

  /** Starts to answer messages. */
  #listen(): void {
    this.#watcher = this.#kernel.watch(this.#file.fd, () => this.#messages.receive());
  }

  /** The driver does not repeat its steps for a new process: what the queues say tells how far it was. */
  async #resume(): Promise<void> {
    const ready = this.#file.queueInfo(0)?.ready === true;
    this.#adopting = true;
    try {
      await this.#controller.resume(ready ? DeviceStatus.DRIVER_OK : 0, this.#stepMs());
    } finally {
      this.#adopting = false;
    }
  }
}
