/**
 * A front-end in this process: the driver's side of any virtio device, over memory of its own, with real
 * eventfds, so that devices run on their real queue threads. Guest memory is laid out to be awkward: two
 * regions that follow each other for the guest lie apart and in the other order on the host.
 */
import assert from 'node:assert/strict';
import type {
  Activation,
  QueueActivation,
  QuiesceResult,
  VirtioDevice,
} from '../../src/device/virtio-device.js';
import { GuestMemory } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import { closeFd, createEventFd, drainEventFd, signalEventFd } from '../../src/native/fd.js';
import { type FdWatcher, watchReadable } from '../../src/native/fd-watcher.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { DriverVirtqueue, UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import {
  availableRingBytes,
  descriptorTableBytes,
  RING_F,
  usedRingBytes,
} from '../../src/virtqueue/layout.js';
import { FrontEndMemory, ringsStart, untouched } from './front-end-memory.js';
import { isClosed, willClose } from './leftovers.js';

export interface FrontEndOptions {
  /** Queues that the driver makes ready; all of the device's when absent. */
  readonly queueCount?: number;
  /** Elements of each queue; the device's maximum when absent. */
  readonly queueSize?: number;
  /** Takes features away from what the device offers. */
  readonly without?: readonly number[];
  /** Bytes for payload. */
  readonly dataBytes?: number;
  /** Descriptors of each indirect table; 16 when absent. */
  readonly tableEntries?: number;
  /** Where buffers begin: at odd addresses, the default, or at pages. */
  readonly buffers?: 'odd' | 'page';
  /** The memory is a file, which others can map: see FrontEndMemory.file. */
  readonly shared?: boolean;
}

/** What came back for a chain: the bytes of its writable buffers, one after the other. */
export interface Exchange {
  readonly written: number;
  readonly data: Uint8Array;
}

/** What the driver gives: bytes to read, and lengths of buffers to write. */
export interface Offer {
  readonly readable: readonly Uint8Array[];
  readonly writable: readonly number[];
}

interface Pending {
  readonly buffers: ChainBuffers;
  readonly release: () => void;
  readonly resolve: (written: number) => void;
}

export interface RingPlace {
  readonly descriptorAddress: number;
  readonly driverAddress: number;
  readonly deviceAddress: number;
  readonly tablesAddress: number;
}

export class FrontEndQueue {
  readonly index: number;
  readonly size: number;
  readonly place: RingPlace;
  readonly kickFd = createEventFd();
  readonly callFd = createEventFd();
  /** How the device is kicked: by the queue's own eventfd, unless a transport brings another one. */
  kick: () => void = () => signalEventFd(this.kickFd);
  /** Times that the device interrupted. */
  interrupts = 0;
  readonly #memory: FrontEndMemory;
  readonly #driver: DriverVirtqueue;
  readonly #used: UsedBatch;
  readonly #pending = new Map<number, Pending>();
  readonly #backlog: { token: number; pending: Pending }[] = [];
  readonly #watcher: FdWatcher;
  /** Bytes on both sides of a writable buffer, which must stay as they are; they also place the buffers. */
  readonly #guardBytes: number;
  #nextToken = 1;
  #publishing = false;

  constructor(
    queue: { index: number; size: number; place: RingPlace },
    features: { eventIdx: boolean; tableEntries: number; guardBytes: number },
    memory: FrontEndMemory,
  ) {
    this.#guardBytes = features.guardBytes;
    this.index = queue.index;
    this.size = queue.size;
    this.place = queue.place;
    this.#memory = memory;
    this.#used = new UsedBatch(queue.size);
    const { tableEntries, eventIdx } = features;
    this.#driver = new DriverVirtqueue(
      {
        size: queue.size,
        ...queue.place,
        eventIdx,
        indirectTables:
          tableEntries === 0 ? undefined : { address: queue.place.tablesAddress, entries: tableEntries },
      },
      new GuestMemory(memory.regions),
    );
    this.#watcher = watchReadable(this.callFd, () => this.#onCall());
  }

  get inFlight(): number {
    return this.#pending.size - this.#backlog.length;
  }

  /** After the device was reset: what was in flight is forgotten and never settles. */
  reset(): void {
    this.#driver.reset();
    this.#pending.clear();
    this.#backlog.length = 0;
    drainEventFd(this.kickFd);
  }

  /** Gives a chain to the device and waits for it; also when the queue is full at first. */
  exchange(offer: Offer): Promise<Exchange> {
    return this.submit(offer).done;
  }

  /** The used ring as it is now. */
  usedRing(): Uint8Array {
    return this.#memory.read(this.place.deviceAddress, usedRingBytes(this.size));
  }

  /** Gives a chain of readable buffers to the device as they are, and does not wait for it. */
  submitRaw(pieces: readonly { address: number; length: number }[]): void {
    const buffers = new ChainBuffers(pieces.length);
    for (const { address, length } of pieces) {
      buffers.addReadable(address, length);
    }
    const token = this.#nextToken++;
    assert.ok(this.#driver.addAvailable(buffers, token) >= 0);
    this.#pending.set(token, { buffers, release() {}, resolve() {} });
    this.#driver.publishAvailable();
    this.kick();
  }

  /** Gives a chain to the device. `writableBytes` are its writable buffers as they are now. */
  submit(offer: Offer): { done: Promise<Exchange>; writableBytes: () => Uint8Array } {
    const memory = this.#memory;
    const guardBytes = this.#guardBytes;
    const places: { address: number; length: number }[] = [];
    const buffers = new ChainBuffers(offer.readable.length + offer.writable.length);
    for (const bytes of offer.readable) {
      const around = memory.allocate(bytes.length + guardBytes);
      places.push({ address: around, length: bytes.length + guardBytes });
      memory.write(around + guardBytes, bytes);
      buffers.addReadable(around + guardBytes, bytes.length);
    }
    const guarded = offer.writable.map((length) => {
      const around = memory.allocate(length + 2 * guardBytes);
      places.push({ address: around, length: length + 2 * guardBytes });
      memory.fill(around, length + 2 * guardBytes, untouched);
      buffers.addWritable(around + guardBytes, length);
      return { around, length };
    });
    const done = this.#send(
      buffers,
      () => {
        for (const { address, length } of places) {
          memory.release(address, length);
        }
      },
      guarded,
    );
    return { done, writableBytes: () => this.#collect(guarded) };
  }

  async #send(
    buffers: ChainBuffers,
    release: () => void,
    guarded: readonly { around: number; length: number }[],
  ): Promise<Exchange> {
    const token = this.#nextToken++;
    return new Promise((resolve, reject) => {
      const finish = (written: number): void => {
        try {
          resolve({ written, data: this.#collect(guarded) });
        } catch (error) {
          reject(error);
        }
      };
      const pending = { buffers, release, resolve: finish };
      this.#pending.set(token, pending);
      if (!this.#add(token, pending)) {
        this.#backlog.push({ token, pending });
      }
    });
  }

  #collect(guarded: readonly { around: number; length: number }[]): Uint8Array {
    const guardBytes = this.#guardBytes;
    const parts = guarded.map(({ around, length }) => {
      const all = this.#memory.read(around, length + 2 * guardBytes);
      const isGuard = (byte: number): boolean => byte === untouched;
      assert.ok(
        all.subarray(0, guardBytes).every(isGuard) && all.subarray(guardBytes + length).every(isGuard),
        'the device wrote outside the buffers that it was given',
      );
      return all.subarray(guardBytes, guardBytes + length);
    });
    return Buffer.concat(parts);
  }

  #add(token: number, pending: Pending): boolean {
    const head = this.#driver.addAvailable(pending.buffers, token);
    if (head === -Errno.ENOSPC) {
      return false;
    }
    assert.ok(head >= 0, `a chain of ${pending.buffers.count} buffers can't be added: ${head}`);
    if (!this.#publishing) {
      this.#publishing = true;
      // What one turn of the caller adds is shown, and kicked, at once.
      queueMicrotask(() => {
        this.#publishing = false;
        if (this.#driver.publishAvailable()) {
          this.kick();
        }
      });
    }
    return true;
  }

  #onCall(): void {
    drainEventFd(this.callFd);
    this.interrupts++;
    this.pollUsed();
  }

  /** Takes what the device has used. */
  pollUsed(): void {
    do {
      const count = this.#driver.popUsed(this.#used);
      assert.ok(count >= 0, 'the device broke the used ring');
      for (let n = 0; n < count; n++) {
        const token = this.#used.token[n];
        const pending = this.#pending.get(token);
        assert.ok(pending !== undefined, `token ${token} came back twice`);
        this.#pending.delete(token);
        pending.resolve(this.#used.writtenLength[n]);
        pending.release();
      }
    } while (this.#driver.enableNotifications());
    while (this.#backlog.length > 0 && this.#add(this.#backlog[0].token, this.#backlog[0].pending)) {
      this.#backlog.shift();
    }
  }

  close(): void {
    this.#watcher.close();
    closeFd(this.kickFd);
    closeFd(this.callFd);
  }
}

export class FrontEnd {
  readonly device: VirtioDevice;
  readonly features: bigint;
  readonly memory: FrontEndMemory;
  readonly queues: readonly FrontEndQueue[];
  #availIndices: ReadonlyMap<number, number> = new Map();

  /** Negotiates and makes the queues; `activate` starts the device. */
  constructor(device: VirtioDevice, options: FrontEndOptions = {}) {
    const without = (options.without ?? []).reduce((bits, bit) => bits | (1n << BigInt(bit)), 0n);
    this.device = device;
    this.features = device.deviceFeatures & ~without;
    const has = (bit: number): boolean => ((this.features >> BigInt(bit)) & 1n) === 1n;
    const size = options.queueSize ?? device.queueSizeMax;
    const tableEntries = has(RING_F.INDIRECT_DESC) ? (options.tableEntries ?? 16) : 0;
    const count = options.queueCount ?? device.queueCount;
    let ringBytes = 0;
    const place = (length: number): number => {
      const at = ringBytes;
      ringBytes = Math.ceil((at + length) / 64) * 64;
      return ringsStart + at;
    };
    const places = Array.from({ length: count }, () => ({
      descriptorAddress: place(descriptorTableBytes(size)),
      driverAddress: place(availableRingBytes(size)),
      deviceAddress: place(usedRingBytes(size)),
      tablesAddress: place(tableEntries * size * 16),
    }));
    willClose(this, () => this.close(100));
    const memory = new FrontEndMemory(ringBytes, options.dataBytes ?? 16 << 20, options.shared);
    const guardBytes = options.buffers === 'page' ? 4096 : 7;
    const eventIdx = has(RING_F.EVENT_IDX);
    this.memory = memory;
    this.queues = places.map(
      (one, index) =>
        new FrontEndQueue({ index, size, place: one }, { eventIdx, tableEntries, guardBytes }, memory),
    );
  }

  activation(): Activation {
    const queues = this.queues.map(
      ({ index, size, place, kickFd, callFd }): QueueActivation => ({
        index,
        size,
        descriptorAddress: place.descriptorAddress,
        driverAddress: place.driverAddress,
        deviceAddress: place.deviceAddress,
        availIndex: this.#availIndices.get(index) ?? 0,
        kickFd,
        notifier: { kind: 'eventfd', fd: callFd },
      }),
    );
    return { features: this.features, queues, memory: this.memory.regions };
  }

  /** After a reset: the rings begin anew. */
  async restart(): Promise<void> {
    for (const queue of this.queues) {
      queue.reset();
    }
    this.#availIndices = new Map();
    await this.activate();
  }

  async activate(): Promise<this> {
    await this.device.activate(this.activation());
    return this;
  }

  /** Stops the device; `activate` goes on where it stopped. */
  async quiesce(timeoutMs = 5000): Promise<QuiesceResult> {
    const result = await this.device.quiesce({ timeoutMs });
    this.#availIndices = result.availIndices;
    return result;
  }

  /** Stops the device and gives everything back. Not drained: the memory stays mapped. */
  async close(timeoutMs = 5000): Promise<void> {
    isClosed(this);
    const { drained } = await this.quiesce(timeoutMs);
    for (const queue of this.queues) {
      queue.close();
    }
    if (drained) {
      this.memory.close();
    }
  }
}
