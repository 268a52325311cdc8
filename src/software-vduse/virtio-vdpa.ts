/** The bus driver that makes a disk of every block device that is added: virtio-vdpa with virtio-blk, in software. */
import { BlkFrontend, type BlkFrontendOptions } from './blk-frontend.js';
import type { VdpaBusDriver } from './software-vduse.js';
import type { VdpaDevice } from './vdpa-device.js';

/** Virtio 2.1: ACKNOWLEDGE. */
const statusAcknowledge = 1;

export class VirtioVdpa implements VdpaBusDriver {
  readonly #options: BlkFrontendOptions;
  readonly #frontends = new Map<string, BlkFrontend>();

  constructor(options: BlkFrontendOptions = {}) {
    this.#options = options;
  }

  async probe(device: VdpaDevice): Promise<void> {
    this.#frontends.set(device.name, await BlkFrontend.probe(device, this.#options));
  }

  async remove(device: VdpaDevice): Promise<void> {
    const frontend = this.#frontends.get(device.name);
    this.#frontends.delete(device.name);
    await frontend?.remove();
    if (frontend !== undefined) {
      // As Linux's virtio core leaves a device that has no driver any more.
      await device.setStatus(statusAcknowledge);
    }
  }

  /** The disk that a device became. */
  disk(name: string): BlkFrontend | undefined {
    return this.#frontends.get(name);
  }
}
