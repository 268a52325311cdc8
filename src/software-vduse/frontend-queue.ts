/**
 * One virtio-blk queue from the driver's side: requests with promises over a DriverVirtqueue. Headers, status
 * bytes and rings are coherent memory; payload goes through the domain, which bounces it or not.
 */
import { SystemCallError } from '../base/errors.js';
import { GuestMemory, MemoryAccess } from '../memory/guest-memory.js';
import { describeErrno, Errno } from '../native/errno.js';
import { closeFd, createEventFd, drainEventFd } from '../native/fd.js';
import { type FdWatcher, watchReadable } from '../native/fd-watcher.js';
import { ChainBuffers } from '../virtqueue/chain-buffers.js';
import { DriverVirtqueue, UsedBatch } from '../virtqueue/driver-virtqueue.js';
import { availableRingBytes, descriptorTableBytes, usedRingBytes } from '../virtqueue/layout.js';
import type { DeviceLoop } from './device-loop.js';
import type { DmaDirection, IovaDomain } from './iova-domain.js';
import type { VdpaDevice } from './vdpa-device.js';

/** virtio 5.2.6: a request's header; discards and write-zeroes have one range of 16 bytes behind it. */
const headerBytes = 16;
const rangeBytes = 16;
const statusOffset = headerBytes + rangeBytes;
const slotBytes = 64;
const indirectEntries = 8;
/** Segments of a payload that every chain has room for: a table less header and status, or the smallest queue. */
export function payloadSegmentsMax(queue: { readonly size: number; readonly indirect: boolean }): number {
  return (queue.indirect ? Math.max(indirectEntries, queue.size) : queue.size) - 2;
}
const statusOk = 0;
const statusUnsupported = 2;
/** What the device has not written: no status of virtio. */
const statusNone = 0xff;

export interface FrontendQueueOptions {
  readonly device: VdpaDevice;
  readonly domain: IovaDomain;
  readonly index: number;
  readonly size: number;
  readonly eventIdx: boolean;
  readonly indirect: boolean;
  /** The longest segment of a payload, bytes. */
  readonly segmentBytesMax: number;
  /** Called when requests have ended: what they held in the domain is free for other queues' requests. */
  readonly onEnded: () => void;
  /** The device's loop, where it runs on this thread: there are no kicks and no calls then. */
  readonly loop?: DeviceLoop | undefined;
}

export interface FrontendRequest {
  /** A VIRTIO_BLK_T_*. */
  readonly type: number;
  /** In sectors of 512 bytes. */
  readonly sector: number;
  /** The payload's host address and length; the length is 0 where there is none. */
  readonly address: number;
  readonly length: number;
  readonly direction: DmaDirection;
  /** Discard and write-zeroes: sectors and flags of the range. */
  readonly range?: { readonly sectors: number; readonly flags: number };
  /** Whatever must stay alive until the request has ended. */
  readonly keep?: unknown;
}

interface Pending {
  readonly request: FrontendRequest;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  iova: number;
}

function align(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

function failure(errno: number, request: FrontendRequest): SystemCallError {
  const detail = `(request type ${request.type}, sector ${request.sector})`;
  return new SystemCallError('virtio-blk', errno, describeErrno(errno), detail);
}

export class FrontendQueue {
  readonly index: number;
  readonly size: number;
  readonly #options: FrontendQueueOptions;
  readonly #coherent: { iova: number; hostAddress: number };
  readonly #coherentBytes: number;
  readonly #slotsOffset: number;
  readonly #slots: DataView;
  readonly #queue: DriverVirtqueue;
  readonly #buffers = new ChainBuffers(64);
  readonly #batch: UsedBatch;
  readonly #callFd: number;
  readonly #watcher: FdWatcher;
  readonly #freeSlots: number[];
  readonly #pending: (Pending | undefined)[];
  /** Requests for which there was no slot, descriptor or bounce space: they wait, they do not fail. */
  readonly #waiting: Pending[] = [];
  readonly #drained: (() => void)[] = [];
  #flushScheduled = false;
  #broken = false;
  #inFlight = 0;

  /** Makes the queue known to the device; it is used after DRIVER_OK. */
  constructor(options: FrontendQueueOptions) {
    const { size, domain, device, index } = options;
    this.index = index;
    this.size = size;
    this.#options = options;
    const driverOffset = align(descriptorTableBytes(size), 4096);
    const deviceOffset = align(driverOffset + availableRingBytes(size), 4096);
    const tablesOffset = align(deviceOffset + usedRingBytes(size), 4096);
    this.#slotsOffset = tablesOffset + descriptorTableBytes(size) * indirectEntries;
    this.#coherentBytes = this.#slotsOffset + size * slotBytes;
    this.#coherent = domain.allocateCoherent(this.#coherentBytes);
    const { iova, hostAddress } = this.#coherent;
    const memory = new GuestMemory([
      { start: iova, length: this.#coherentBytes, hostAddress, access: MemoryAccess.READ_WRITE },
    ]);
    const rings = {
      size,
      descriptorAddress: iova,
      driverAddress: iova + driverOffset,
      deviceAddress: iova + deviceOffset,
    };
    this.#queue = new DriverVirtqueue(
      {
        ...rings,
        eventIdx: options.eventIdx,
        indirectTables: options.indirect
          ? { address: iova + tablesOffset, entries: indirectEntries }
          : undefined,
      },
      memory,
    );
    const view = memory.locate(iova + this.#slotsOffset, size * slotBytes, MemoryAccess.READ_WRITE);
    this.#slots = new DataView(
      view?.buffer as ArrayBuffer,
      (view?.byteOffset ?? 0) + memory.locatedOffset,
      size * slotBytes,
    );
    this.#batch = new UsedBatch(size);
    this.#freeSlots = Array.from({ length: size }, (_, n) => size - 1 - n);
    this.#pending = new Array(size);
    this.#callFd = createEventFd();
    this.#watcher = watchReadable(this.#callFd, () => this.#onCall());
    if (options.loop !== undefined) {
      this.#queue.disableNotifications();
    }
    device.setQueue(index, rings);
    device.setQueueCall(index, this.#callFd);
    device.setQueueReady(index, true);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** Runs a request. Rejects with EIO, EOPNOTSUPP, or ENODEV where the device has gone. */
  submit(request: FrontendRequest): Promise<void> {
    if (this.#broken) {
      return Promise.reject(failure(Errno.ENODEV, request));
    }
    return new Promise((resolve, reject) => {
      const pending = { request, resolve, reject, iova: 0 };
      this.#inFlight++;
      if (this.#waiting.length > 0 || !this.#start(pending)) {
        this.#waiting.push(pending);
      }
    });
  }

  /** Resolves when nothing is in flight. */
  drained(): Promise<void> {
    return this.#inFlight === 0 ? Promise.resolve() : new Promise((resolve) => this.#drained.push(resolve));
  }

  /** Fails everything that waits: the device will not answer any more. */
  fail(): void {
    this.#broken = true;
    for (const pending of [...this.#pending, ...this.#waiting.splice(0)]) {
      if (pending !== undefined) {
        this.#end(pending, failure(Errno.ENODEV, pending.request));
      }
    }
    this.#pending.fill(undefined);
  }

  /** Frees what the queue holds. The device has been reset. */
  close(): void {
    this.#watcher.close();
    closeFd(this.#callFd);
    this.#options.domain.freeCoherent(this.#coherent.iova, this.#coherentBytes);
  }

  /** False: something lacks, and the request has to wait. */
  #start(pending: Pending): boolean {
    const { request } = pending;
    const slot = this.#freeSlots.pop();
    if (slot === undefined) {
      return false;
    }
    const { domain } = this.#options;
    if (request.length > 0) {
      pending.iova = domain.mapBuffer(request.address, request.length, request.direction);
    }
    if ((request.length > 0 && pending.iova === 0) || !this.#add(pending, slot)) {
      if (pending.iova !== 0) {
        domain.unmapBuffer(pending.iova, request.address, request.length, 'to-device');
        pending.iova = 0;
      }
      this.#freeSlots.push(slot);
      return false;
    }
    this.#pending[slot] = pending;
    this.#scheduleFlush();
    return true;
  }

  #add(pending: Pending, slot: number): boolean {
    const { request, iova } = pending;
    const at = slot * slotBytes;
    const address = this.#coherent.iova + this.#slotsOffset + at;
    const slots = this.#slots;
    slots.setUint32(at, request.type, true);
    slots.setUint32(at + 4, 0, true);
    slots.setUint32(at + 8, request.range === undefined ? request.sector % 2 ** 32 : 0, true);
    slots.setUint32(at + 12, request.range === undefined ? request.sector / 2 ** 32 : 0, true);
    slots.setUint8(at + statusOffset, statusNone);
    const buffers = this.#buffers;
    buffers.clear();
    if (request.range === undefined) {
      buffers.addReadable(address, headerBytes);
    } else {
      const range = at + headerBytes;
      slots.setUint32(range, request.sector % 2 ** 32, true);
      slots.setUint32(range + 4, request.sector / 2 ** 32, true);
      slots.setUint32(range + 8, request.range.sectors, true);
      slots.setUint32(range + 12, request.range.flags, true);
      buffers.addReadable(address, headerBytes + rangeBytes);
    }
    const { segmentBytesMax } = this.#options;
    for (let done = 0; done < request.length; done += segmentBytesMax) {
      const piece = Math.min(segmentBytesMax, request.length - done);
      if (request.direction === 'to-device') {
        buffers.addReadable(iova + done, piece);
      } else {
        buffers.addWritable(iova + done, piece);
      }
    }
    buffers.addWritable(address + statusOffset, 1);
    return this.#queue.addAvailable(buffers, slot) >= 0;
  }

  /** One publication, and at most one kick, for all that a turn of the event loop has submitted. */
  #scheduleFlush(): void {
    if (!this.#flushScheduled) {
      this.#flushScheduled = true;
      queueMicrotask(() => {
        this.#flushScheduled = false;
        this.#publish();
      });
    }
  }

  #publish(): void {
    const { device, loop } = this.#options;
    if (this.#broken) {
      return;
    }
    const mustKick = this.#queue.publishAvailable();
    if (loop !== undefined) {
      loop.run();
    } else if (mustKick) {
      device.kick(this.index);
    }
  }

  #onCall(): void {
    drainEventFd(this.#callFd);
    do {
      this.takeUsed();
    } while (!this.#broken && this.#options.loop === undefined && this.#queue.enableNotifications());
  }

  /** Ends what the device has used. Returns how many requests that are. */
  takeUsed(): number {
    const count = this.#broken ? 0 : this.#queue.popUsed(this.#batch);
    if (count < 0) {
      this.fail();
    }
    for (let n = 0; n < count; n++) {
      this.#complete(this.#batch.token[n]);
    }
    if (count !== 0) {
      this.#options.onEnded();
    }
    return Math.max(0, count);
  }

  #complete(slot: number): void {
    const pending = this.#pending[slot];
    this.#pending[slot] = undefined;
    this.#freeSlots.push(slot);
    if (pending === undefined) {
      return;
    }
    const status = this.#slots.getUint8(slot * slotBytes + statusOffset);
    if (status === statusOk) {
      this.#end(pending, undefined);
    } else {
      const errno = status === statusUnsupported ? Errno.EOPNOTSUPP : Errno.EIO;
      this.#end(pending, failure(errno, pending.request));
    }
  }

  #end(pending: Pending, error: Error | undefined): void {
    const { request, iova } = pending;
    if (iova !== 0) {
      // A failed read has nothing that is worth copying out.
      const direction = error === undefined ? request.direction : 'to-device';
      this.#options.domain.unmapBuffer(iova, request.address, request.length, direction);
    }
    this.#inFlight--;
    if (error === undefined) {
      pending.resolve();
    } else {
      pending.reject(error);
    }
    if (this.#inFlight === 0) {
      for (const resolve of this.#drained.splice(0)) {
        resolve();
      }
    }
  }

  /** Starts what waits, as far as there is room now. */
  startWaiting(): void {
    while (this.#waiting.length > 0 && this.#start(this.#waiting[0])) {
      this.#waiting.shift();
    }
  }
}
