/** A virtio device of any kind from code. */
import { type Logger, silentLogger } from '../base/log.js';
import { CustomDevice, type DeviceDefinition } from '../device/custom/custom-device.js';
import { type AttachedDevice, attachDevice } from '../transport/vduse/attach.js';
import { VduseTransport } from '../transport/vduse/vduse-transport.js';
import { closeAll } from './close-all.js';
import { acquireQueueThreads, releaseQueueThreads } from './process-hosts.js';

export interface DeviceOptions {
  /** The VDUSE device's name. */
  readonly name: string;
  /** `virtio`, the default: for this machine's drivers. `vhost`: for a virtual machine. False: not on the bus. */
  readonly attach?: 'virtio' | 'vhost' | false;
  readonly logger?: Logger;
}

export interface ExportedDevice {
  readonly name: string;
  readonly attached: AttachedDevice | undefined;
  /** Changes the configuration space; the driver is interrupted for it. */
  setConfig(config: Uint8Array): void;
  /** Takes the device away after the requests in flight have ended. */
  close(): Promise<void>;
}

/** Gives a virtio device to this machine. Needs Linux's VDUSE and its privileges. When it throws, nothing is left. */
export async function exportDevice(
  definition: DeviceDefinition,
  options: DeviceOptions,
): Promise<ExportedDevice> {
  const { name } = options;
  const hosts = acquireQueueThreads(options.logger ?? silentLogger);
  let device: CustomDevice | undefined;
  let transport: VduseTransport | undefined;
  try {
    const made = new CustomDevice(definition, hosts);
    device = made;
    transport = await VduseTransport.create({ name, device: made, logger: options.logger ?? silentLogger });
    const served = transport;
    const binding = options.attach ?? 'virtio';
    const attached = binding === false ? undefined : await attachDevice(served, binding);
    let closing: Promise<void> | undefined;
    return {
      name,
      attached,
      setConfig: (config) => made.setConfig(config),
      close: () => {
        closing ??= closeAll([
          () => (served.isOnBus ? served.detach() : Promise.resolve()),
          () => served.close(),
          async () => made.close(),
          releaseQueueThreads,
        ]);
        return closing;
      },
    };
  } catch (error) {
    const created = transport;
    await closeAll([
      () => created?.close() ?? Promise.resolve(),
      async () => device?.close(),
      releaseQueueThreads,
    ]);
    throw error;
  }
}
