// Hot file: synchronous, no allocation per request, no throw after construction.
/**
 * virtio-blk's requests (virtio 1.3, 5.2.6): from descriptor chains to block requests, and from their
 * completions to status bytes. The queue around it is device-queue.ts.
 */
import { limits } from '../../base/limits.js';
import { createEngine } from '../../block/create-engine.js';
import { detectZeroWrite } from '../../block/detect-zeroes.js';
import { type BlockCompletionSink, type BlockEngine, BlockFlag, BlockOp } from '../../block/engine.js';
import { RequestTable } from '../../block/request-table.js';
import type { AlignedPool } from '../../memory/aligned-pool.js';
import { type GuestMemory, MemoryAccess } from '../../memory/guest-memory.js';
import { Errno } from '../../native/errno.js';
import type { Reactor } from '../../reactor/reactor.js';
import type { DescriptorChain } from '../../virtqueue/descriptor-chain.js';
import { hasFeature } from '../../virtqueue/layout.js';
import type { ChainHandler, DeviceQueue } from '../device-queue.js';
import { LatencyRecorder } from '../latency.js';
import { QueueField } from '../statistics.js';
import {
  BLK_F,
  BLK_HEADER,
  BLK_RANGE,
  BLK_RANGE_F_UNMAP,
  BLK_S,
  BLK_T,
  sectorBytes,
} from './blk-protocol.js';
import type { BlkQueueSpec } from './blk-queue-spec.js';

export interface BlkRequestsContext {
  readonly reactor: Reactor;
  readonly pool: AlignedPool;
  /** A request failed. Called for each; the receiver limits what it tells. */
  readonly onError: (errno: number, operation: 'read' | 'write') => void;
}

const two32 = 0x1_0000_0000;
/** Beside the status bytes of virtio: the request goes on. */
const started = -1;

export class BlkRequests implements ChainHandler, BlockCompletionSink {
  readonly #spec: BlkQueueSpec;
  readonly #onError: (errno: number, operation: 'read' | 'write') => void;
  readonly #queue: DeviceQueue;
  readonly #memory: GuestMemory;
  readonly #table: RequestTable;
  readonly #engine: BlockEngine;
  readonly #counters: Float64Array;
  readonly #latency: LatencyRecorder;
  readonly #scratch = new DataView(new ArrayBuffer(limits.rangeSegmentsMax * BLK_RANGE.bytes));
  readonly #serial: Uint8Array;
  readonly #alignmentMask: number;
  readonly #writeThrough: boolean;
  readonly #canDiscard: boolean;
  readonly #canWriteZeroes: boolean;
  // Per slot: the chain's head, where its status byte goes, its writable and its payload bytes.
  readonly #head: Uint16Array;
  readonly #statusView: (DataView | undefined)[];
  readonly #statusOffset: Float64Array;
  readonly #writableBytes: Float64Array;
  readonly #bytes: Float64Array;
  // The ranges of DISCARD and WRITE_ZEROES, done one after the other.
  readonly #rangeNext: Uint8Array;
  readonly #rangeCount: Uint8Array;
  readonly #rangeOffset: Float64Array;
  readonly #rangeLength: Float64Array;
  readonly #rangeFlags: Uint8Array;

  constructor(spec: BlkQueueSpec, queue: DeviceQueue, context: BlkRequestsContext) {
    const { features } = spec;
    const { size } = queue;
    this.#spec = spec;
    this.#onError = context.onError;
    this.#queue = queue;
    this.#memory = queue.memory;
    this.#table = new RequestTable(size, limits.requestSegmentsMax);
    this.#counters = queue.counters;
    this.#latency = new LatencyRecorder(queue.latencies, size, context.reactor);
    this.#serial = new TextEncoder().encode(spec.serial);
    this.#alignmentMask = spec.requestAlignment - 1;
    // 5.2.6.2: without FLUSH the driver takes every completed write for durable.
    this.#writeThrough = !hasFeature(features, BLK_F.FLUSH);
    this.#canDiscard = hasFeature(features, BLK_F.DISCARD);
    this.#canWriteZeroes = hasFeature(features, BLK_F.WRITE_ZEROES);
    this.#head = new Uint16Array(size);
    this.#statusView = new Array(size);
    this.#statusOffset = new Float64Array(size);
    this.#writableBytes = new Float64Array(size);
    this.#bytes = new Float64Array(size);
    this.#rangeNext = new Uint8Array(size);
    this.#rangeCount = new Uint8Array(size);
    this.#rangeOffset = new Float64Array(size * limits.rangeSegmentsMax);
    this.#rangeLength = new Float64Array(size * limits.rangeSegmentsMax);
    this.#rangeFlags = new Uint8Array(size * limits.rangeSegmentsMax);
    try {
      this.#engine = createEngine(spec.engine, {
        table: this.#table,
        sink: this,
        reactor: context.reactor,
        pool: context.pool,
      });
    } catch (error) {
      this.#table.close();
      throw error;
    }
  }

  // ChainHandler

  onChain(head: number, chain: DescriptorChain): string | undefined {
    if (chain.readableBytes < BLK_HEADER.bytes || chain.writableBytes < 1) {
      return 'a request has no room for its header or its status';
    }
    const slot = this.#table.take();
    this.#head[slot] = head;
    this.#writableBytes[slot] = chain.writableBytes;
    this.#bytes[slot] = 0;
    this.#rangeNext[slot] = 0;
    this.#rangeCount[slot] = 0;
    // 5.2.6: the status is the last writable byte, however the buffers were split.
    const last = chain.count - 1;
    const statusAddress = chain.guestAddress[last] + chain.length[last] - 1;
    this.#statusView[slot] = this.#memory.locate(statusAddress, 1, MemoryAccess.WRITE);
    this.#statusOffset[slot] = this.#memory.locatedOffset;
    const status = this.#start(slot, chain);
    if (status !== started) {
      this.#finish(slot, status);
    }
    return undefined;
  }

  expedite(): void {
    this.#engine.expedite?.();
  }

  cancel(): void {
    this.#engine.cancel();
  }

  close(drained: boolean): void {
    if (drained) {
      this.#release();
    } else {
      this.#engine.abandon();
    }
  }

  // BlockCompletionSink

  onBlockComplete(slot: number, result: number): void {
    if (this.#queue.abandoned) {
      this.#endAbandoned(slot);
      return;
    }
    if (result === 0 && this.#rangeNext[slot] < this.#rangeCount[slot]) {
      this.#submitRange(slot);
      return;
    }
    if (result < 0) {
      this.#onError(-result, this.#table.op[slot] === BlockOp.READ ? 'read' : 'write');
    }
    this.#finish(slot, result === 0 ? BLK_S.OK : result === -Errno.EOPNOTSUPP ? BLK_S.UNSUPP : BLK_S.IOERR);
  }

  /** The last of the requests that were given up takes with it what the queue still held for them. */
  #endAbandoned(slot: number): void {
    this.#table.release(slot);
    this.#queue.complete(this.#head[slot], 0);
    if (this.#table.inFlight === 0) {
      this.#release();
    }
  }

  #release(): void {
    this.#engine.close();
    this.#table.close();
  }

  /** Starts a request. Returns `started`, or the status of one that is over already. */
  #start(slot: number, chain: DescriptorChain): number {
    // The header alone, in one look where it lies in one segment.
    const whole = chain.length[0] >= BLK_HEADER.bytes;
    const located = whole
      ? this.#memory.locate(chain.guestAddress[0], BLK_HEADER.bytes, MemoryAccess.READ)
      : undefined;
    const view = located ?? this.#scratch;
    const at = located === undefined ? 0 : this.#memory.locatedOffset;
    if (located === undefined) {
      this.#gather(chain, 0, BLK_HEADER.bytes);
    }
    const type = view.getUint32(at + BLK_HEADER.type, true);
    const low = view.getUint32(at + BLK_HEADER.sector, true);
    const high = view.getUint32(at + BLK_HEADER.sector + 4, true);
    const offset = (high * two32 + low) * sectorBytes;
    switch (type) {
      case BLK_T.IN:
        return this.#startRead(slot, chain, offset);
      case BLK_T.OUT:
        return this.#startWrite(slot, chain, offset);
      case BLK_T.FLUSH:
        this.#counters[QueueField.FLUSHES]++;
        this.#table.op[slot] = BlockOp.FLUSH;
        return this.#submit(slot);
      case BLK_T.GET_ID:
        return this.#getId(chain);
      case BLK_T.DISCARD:
        return this.#canDiscard ? this.#startRanges(slot, chain, BlockOp.DISCARD) : BLK_S.UNSUPP;
      case BLK_T.WRITE_ZEROES:
        return this.#canWriteZeroes ? this.#startRanges(slot, chain, BlockOp.WRITE_ZEROES) : BLK_S.UNSUPP;
      default:
        return BLK_S.UNSUPP;
    }
  }

  #startRead(slot: number, chain: DescriptorChain, offset: number): number {
    const length = chain.writableBytes - 1;
    if (!this.#isInRange(offset, length)) {
      return BLK_S.IOERR;
    }
    const table = this.#table;
    for (let n = chain.readableCount; n < chain.count; n++) {
      const isLast = n === chain.count - 1;
      const bytes = isLast ? chain.length[n] - 1 : chain.length[n];
      if (bytes > 0 && !table.addSegment(slot, chain.hostAddress[n], bytes)) {
        return BLK_S.IOERR;
      }
    }
    this.#counters[QueueField.READS]++;
    this.#bytes[slot] = length;
    table.op[slot] = BlockOp.READ;
    table.offset[slot] = offset;
    return length === 0 ? BLK_S.OK : this.#submit(slot);
  }

  #startWrite(slot: number, chain: DescriptorChain, offset: number): number {
    const length = chain.readableBytes - BLK_HEADER.bytes;
    if (this.#spec.readOnly || !this.#isInRange(offset, length)) {
      return BLK_S.IOERR;
    }
    const table = this.#table;
    let skip: number = BLK_HEADER.bytes;
    for (let n = 0; n < chain.readableCount; n++) {
      const skipped = Math.min(skip, chain.length[n]);
      const bytes = chain.length[n] - skipped;
      skip -= skipped;
      if (bytes > 0 && !table.addSegment(slot, chain.hostAddress[n] + skipped, bytes)) {
        return BLK_S.IOERR;
      }
    }
    this.#counters[QueueField.WRITES]++;
    this.#bytes[slot] = length;
    table.op[slot] = BlockOp.WRITE;
    table.offset[slot] = offset;
    if (length === 0) {
      return BLK_S.OK;
    }
    detectZeroWrite(table, slot, this.#spec.detectZeroes);
    return this.#submit(slot);
  }

  /** 5.2.6.2: sectors beyond the capacity are an I/O error; so is what the node's alignment forbids. */
  #isInRange(offset: number, length: number): boolean {
    return length <= limits.requestBytesMax && this.#isRangeValid(offset, length);
  }

  #submit(slot: number): number {
    if (this.#writeThrough) {
      this.#table.flags[slot] |= BlockFlag.FUA;
    }
    this.#latency.start(slot);
    this.#engine.submit(slot);
    return started;
  }

  /** 5.2.6: up to 20 bytes; a shorter string ends with a NUL, one of 20 does not. */
  #getId(chain: DescriptorChain): number {
    const room = Math.min(chain.writableBytes - 1, limits.serialBytesMax);
    let done = 0;
    for (let n = chain.readableCount; n < chain.count && done < room; n++) {
      for (let at = 0; at < chain.length[n] && done < room; at++, done++) {
        const view = this.#memory.locate(chain.guestAddress[n] + at, 1, MemoryAccess.WRITE);
        view?.setUint8(this.#memory.locatedOffset, done < this.#serial.length ? this.#serial[done] : 0);
      }
    }
    return BLK_S.OK;
  }

  #startRanges(slot: number, chain: DescriptorChain, op: number): number {
    const bytes = chain.readableBytes - BLK_HEADER.bytes;
    const count = bytes / BLK_RANGE.bytes;
    if (this.#spec.readOnly || count < 1 || count % 1 !== 0 || count > limits.rangeSegmentsMax) {
      return BLK_S.IOERR;
    }
    this.#gather(chain, BLK_HEADER.bytes, bytes);
    const base = slot * limits.rangeSegmentsMax;
    let total = 0;
    for (let n = 0; n < count; n++) {
      const at = n * BLK_RANGE.bytes;
      const low = this.#scratch.getUint32(at + BLK_RANGE.sector, true);
      const high = this.#scratch.getUint32(at + BLK_RANGE.sector + 4, true);
      const length = this.#scratch.getUint32(at + BLK_RANGE.sectorCount, true) * sectorBytes;
      const flags = this.#scratch.getUint32(at + BLK_RANGE.flags, true);
      const offset = (high * two32 + low) * sectorBytes;
      // 5.2.6.2: unknown flags, and unmap with a discard, are not supported.
      if ((flags & ~BLK_RANGE_F_UNMAP) !== 0 || (flags !== 0 && op === BlockOp.DISCARD)) {
        return BLK_S.UNSUPP;
      }
      if (length > this.#spec.rangeBytesMax || !this.#isRangeValid(offset, length)) {
        return BLK_S.IOERR;
      }
      this.#rangeOffset[base + n] = offset;
      this.#rangeLength[base + n] = length;
      this.#rangeFlags[base + n] = flags === 0 ? 0 : BlockFlag.MAY_UNMAP;
      total += length;
    }
    this.#counters[QueueField.UNMAPS]++;
    this.#rangeCount[slot] = count;
    this.#table.op[slot] = op;
    return total === 0 ? BLK_S.OK : this.#submitRange(slot);
  }

  #isRangeValid(offset: number, length: number): boolean {
    // A bit operation sees the low 32 bits, which is all that an alignment needs, and costs less than a remainder.
    return (
      offset + length <= this.#queue.shared.capacityBytes && ((offset | length) & this.#alignmentMask) === 0
    );
  }

  #submitRange(slot: number): number {
    const table = this.#table;
    const end = this.#rangeCount[slot];
    let n = this.#rangeNext[slot];
    // Empty ranges are legal and have nothing to do; the last one may be, so they are not submitted.
    while (n < end - 1 && this.#rangeLength[slot * limits.rangeSegmentsMax + n] === 0) {
      n++;
    }
    const at = slot * limits.rangeSegmentsMax + n;
    this.#rangeNext[slot] = n + 1;
    if (this.#rangeLength[at] === 0) {
      this.#finish(slot, BLK_S.OK);
      return started;
    }
    table.offset[slot] = this.#rangeOffset[at];
    table.length[slot] = this.#rangeLength[at];
    table.flags[slot] = this.#rangeFlags[at];
    return this.#submit(slot);
  }

  /** Copies readable bytes of the chain, from `skip` on, to the scratch area. */
  #gather(chain: DescriptorChain, skip: number, length: number): void {
    let done = 0;
    for (let n = 0; n < chain.readableCount && done < length; n++) {
      for (let at = skip; at < chain.length[n] && done < length; at++, done++) {
        const view = this.#memory.locate(chain.guestAddress[n] + at, 1, MemoryAccess.READ);
        this.#scratch.setUint8(done, view?.getUint8(this.#memory.locatedOffset) ?? 0);
      }
      skip = Math.max(0, skip - chain.length[n]);
    }
  }

  #finish(slot: number, status: number): void {
    const counters = this.#counters;
    if (status === BLK_S.OK) {
      const read = this.#table.op[slot] === BlockOp.READ;
      counters[read ? QueueField.READ_BYTES : QueueField.WRITE_BYTES] += this.#bytes[slot];
    } else {
      counters[QueueField.ERRORS]++;
    }
    this.#latency.end(slot, this.#table.op[slot]);
    this.#statusView[slot]?.setUint8(this.#statusOffset[slot], status);
    this.#table.release(slot);
    this.#queue.complete(this.#head[slot], this.#writableBytes[slot]);
  }
}
