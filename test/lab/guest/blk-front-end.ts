/** A virtio-blk driver over vhost-vDPA, as simple as one can be: one queue, slots of a fixed size, answers awaited by looking. */
import { GuestMemory, MemoryAccess } from '../../../src/memory/guest-memory.js';
import { closeFd, readFd, signalEventFd, viewBytes } from '../../../src/native/fd.js';
import { ChainBuffers } from '../../../src/virtqueue/chain-buffers.js';
import { DriverVirtqueue, UsedBatch } from '../../../src/virtqueue/driver-virtqueue.js';
import { RING_F } from '../../../src/virtqueue/layout.js';
import { SharedMemory, type VhostVdpaDevice } from './vhost-vdpa.js';

export const Status = { ACKNOWLEDGE: 1, DRIVER: 2, DRIVER_OK: 4, FEATURES_OK: 8 } as const;
export const Operation = { READ: 0, WRITE: 1, FLUSH: 4 } as const;

export const slotBytes = 64 << 10;
export const slotCount = 16;
const queueSize = 64;

/** Where the pieces of the guest's memory lie for the device: far apart, and none at 0. */
const ringsIova = 2 ** 32;
const dataIova = 2 ** 36;
/** Of memory that comes and goes. */
export const extraIova = 2 ** 40;

/** In the memory of the rings. */
const place = {
  descriptors: 0,
  avail: 4096,
  used: 8192,
  tables: 16384,
  headers: 128 << 10,
  length: 256 << 10,
} as const;
const headerStride = 32;
const statusOffset = 16;

export function bit(...numbers: number[]): bigint {
  return numbers.reduce((bits, number) => bits | (1n << BigInt(number)), 0n);
}

export const basicFeatures = bit(RING_F.VERSION_1, RING_F.ACCESS_PLATFORM, 9);
export const ringFeatures = bit(RING_F.INDIRECT_DESC, RING_F.EVENT_IDX);

function sleepMs(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

export class BlkFrontEnd {
  readonly #device: VhostVdpaDevice;
  readonly #rings = new SharedMemory(place.length);
  readonly #data = new SharedMemory(slotCount * slotBytes);
  readonly #headers: DataView;
  readonly #queue: DriverVirtqueue;
  readonly #chain = new ChainBuffers(3);
  readonly #batch = new UsedBatch(slotCount);
  /** Requests made available since the queue was set up. */
  submitted = 0;
  #fds: { kickFd: number; callFd: number } | undefined;

  constructor(device: VhostVdpaDevice, features: bigint) {
    this.#device = device;
    const { address, length } = this.#rings;
    const region = { start: ringsIova, length, hostAddress: address, access: MemoryAccess.READ_WRITE };
    const config = {
      size: queueSize,
      descriptorAddress: ringsIova + place.descriptors,
      driverAddress: ringsIova + place.avail,
      deviceAddress: ringsIova + place.used,
    };
    const indirect = (features & bit(RING_F.INDIRECT_DESC)) !== 0n;
    this.#queue = new DriverVirtqueue(
      {
        ...config,
        eventIdx: (features & bit(RING_F.EVENT_IDX)) !== 0n,
        indirectTables: indirect ? { address: ringsIova + place.tables, entries: 4 } : undefined,
      },
      new GuestMemory([region]),
    );
    this.#headers = new DataView(viewBytes(address + place.headers, slotCount * headerStride).buffer);
    device.status = 0;
    device.status = Status.ACKNOWLEDGE;
    device.status = Status.ACKNOWLEDGE | Status.DRIVER;
    device.setFeatures(features);
    device.status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK;
    if ((device.status & Status.FEATURES_OK) === 0) {
      throw new Error('the device did not take the features');
    }
    device.map({ iova: ringsIova, address, length });
    device.map({ iova: dataIova, address: this.#data.address, length: this.#data.length });
    this.#fds = device.setupQueue(0, queueSize, config);
    device.status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK;
  }

  /** The data of a slot. */
  slot(number: number): Buffer {
    return Buffer.from(viewBytes(this.#data.address + number * slotBytes, slotBytes).buffer);
  }

  /** Makes a request of a whole slot available. `iova`: other memory than the slot's own. */
  submit(slot: number, request: { operation: number; sector: number; iova?: number }): void {
    const { operation, sector, iova = dataIova + slot * slotBytes } = request;
    const at = slot * headerStride;
    this.#headers.setUint32(at, operation, true);
    this.#headers.setBigUint64(at + 8, BigInt(sector), true);
    this.#headers.setUint8(at + statusOffset, 0xff);
    const header = ringsIova + place.headers + at;
    const chain = this.#chain;
    chain.clear();
    chain.addReadable(header, 16);
    if (operation === Operation.WRITE) {
      chain.addReadable(iova, slotBytes);
    } else if (operation === Operation.READ) {
      chain.addWritable(iova, slotBytes);
    }
    chain.addWritable(header + statusOffset, 1);
    const head = this.#queue.addAvailable(chain, slot);
    this.submitted++;
    if (head < 0) {
      throw new Error(`no room in the queue: ${head}`);
    }
  }

  /** Tells the device of what was submitted. */
  kick(): void {
    this.#queue.enableNotifications();
    if (this.#queue.publishAvailable() && this.#fds !== undefined) {
      signalEventFd(this.#fds.kickFd);
    }
  }

  /** Waits for everything in flight. Throws where a request failed or doesn't end. */
  drain(timeoutMs = 30_000): void {
    const deadline = performance.now() + timeoutMs;
    while (this.#queue.inFlight > 0) {
      const count = this.#queue.popUsed(this.#batch);
      if (count < 0) {
        throw new Error('the device broke the used ring');
      }
      for (let n = 0; n < count; n++) {
        const slot = this.#batch.token[n];
        const status = this.#headers.getUint8(slot * headerStride + statusOffset);
        if (status !== 0) {
          throw new Error(`the request of slot ${slot} ended with status ${status}`);
        }
      }
      if (count === 0) {
        if (performance.now() > deadline) {
          throw new Error(`${this.#queue.inFlight} requests in flight after ${timeoutMs / 1000} s`);
        }
        sleepMs(1);
      }
    }
  }

  /** Whether the device has interrupted us since the last time. */
  takeInterrupt(): boolean {
    const { callFd } = this.#fds ?? { callFd: -1 };
    return readFd(callFd, new Uint8Array(8)) === 8;
  }

  /** Resets the device and takes the memory back. */
  close(): void {
    this.#device.status = 0;
    this.#device.unmap({ iova: ringsIova, length: this.#rings.length });
    this.#device.unmap({ iova: dataIova, length: this.#data.length });
    closeFd(this.#fds?.kickFd ?? -1);
    closeFd(this.#fds?.callFd ?? -1);
    this.#fds = undefined;
    this.#rings.close();
    this.#data.close();
  }
}
