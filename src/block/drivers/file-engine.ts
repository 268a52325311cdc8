// Hot file: synchronous, no allocation per request, no throw.
/**
 * Files and block devices on the reactor's ring. Data goes straight between the file and the guest's memory; only what
 * O_DIRECT refuses for its alignment goes through an aligned buffer.
 */
import { limits } from '../../base/limits.js';
import type { AlignedPool } from '../../memory/aligned-pool.js';
import { Errno } from '../../native/errno.js';
import { FallocateMode } from '../../native/fd.js';
import { mapAnonymous, unmap } from '../../native/memory.js';
import { FsyncFlag, RingOp, RwFlag, SqeFlag } from '../../native/ring.js';
import type { EventSource, Reactor } from '../../reactor/reactor.js';
import {
  type BlockCompletionSink,
  type BlockEngine,
  BlockFlag,
  BlockOp,
  type FileEngineSpec,
} from '../engine.js';
import type { RequestTable } from '../request-table.js';
import { BounceBuffers, isAligned } from './bounce-buffers.js';

/** What the slot's entry in the ring is doing; the steps of write-zeroes fall back from one to the next. */
const Step = {
  IDLE: 0,
  TRANSFER: 1,
  SYNC: 2,
  DISCARD: 3,
  ZERO_RANGE: 4,
  PUNCH: 5,
  /** Allocates again what PUNCH freed. */
  ALLOCATE: 6,
  WRITE_ZEROES: 7,
} as const;

const zeroBufferBytes = 1 << 20;
/** A result that no system call gives: the request goes on, nothing completes yet. */
const goesOn = 1;

export interface FileEngineContext {
  readonly spec: FileEngineSpec;
  readonly table: RequestTable;
  readonly sink: BlockCompletionSink;
  readonly reactor: Reactor;
  readonly pool: AlignedPool;
}

export class FileEngine implements BlockEngine, EventSource {
  readonly #fd: number;
  readonly #spec: FileEngineSpec;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #sqeFlags: number;
  readonly #step: Uint8Array;
  readonly #retries: Uint8Array;
  readonly #bounce: BounceBuffers;
  #zeroBuffer = 0;
  /** Whether the file system has refused an operation before: it is not asked again. */
  #canPunch = true;
  #canZeroRange = true;
  #abandoned = false;

  constructor(context: FileEngineContext) {
    this.#spec = context.spec;
    this.#fd = context.spec.fd;
    this.#table = context.table;
    this.#sink = context.sink;
    this.#reactor = context.reactor;
    this.#sqeFlags = context.spec.forceAsync ? SqeFlag.ASYNC : 0;
    this.#step = new Uint8Array(context.table.capacity);
    this.#retries = new Uint8Array(context.table.capacity);
    this.#bounce = new BounceBuffers(context.table, context.pool);
    this.#source = context.reactor.add(this);
  }

  submit(slot: number): void {
    this.#retries[slot] = 0;
    switch (this.#table.op[slot]) {
      case BlockOp.READ:
      case BlockOp.WRITE:
        this.#startTransfer(slot);
        break;
      case BlockOp.FLUSH:
        this.#startSync(slot);
        break;
      case BlockOp.DISCARD:
        if (this.#spec.ignoreDiscard || !this.#canPunch) {
          this.#sink.onBlockComplete(slot, 0);
        } else {
          this.#start(slot, Step.DISCARD);
        }
        break;
      default:
        this.#startZeroes(slot);
        break;
    }
  }

  cancel(): void {
    for (let slot = 0; slot < this.#step.length; slot++) {
      if (this.#step[slot] !== Step.IDLE) {
        this.#reactor.ring.prepareCancel({ source: this.#source, token: slot }, this.#source, ignoredToken);
      }
    }
  }

  abandon(): void {
    this.#abandoned = true;
  }

  close(): void {
    this.#reactor.remove(this.#source);
    if (this.#zeroBuffer !== 0) {
      unmap(this.#zeroBuffer, zeroBufferBytes);
    }
  }

  // The queue drives the engine; as a source it only has completions.
  poll(): number {
    return 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    return false;
  }

  onCompletion(token: number, result: number): void {
    if (token === ignoredToken) {
      return;
    }
    const again = result === -Errno.EAGAIN || result === -Errno.EINTR;
    if (again && this.#retries[token] < limits.resubmissionsMax) {
      this.#retries[token]++;
      this.#start(token, this.#step[token]);
      return;
    }
    const end = this.#advance(token, result);
    if (end !== goesOn) {
      this.#finish(token, end);
    }
  }

  /** What a completion means for its step: goesOn, or the request's result. */
  #advance(slot: number, result: number): number {
    const unsupported = result === -Errno.EOPNOTSUPP || result === -Errno.ENOSYS;
    switch (this.#step[slot]) {
      case Step.TRANSFER:
        return this.#advanceTransfer(slot, result);
      case Step.WRITE_ZEROES:
        return this.#advanceZeroWrite(slot, result);
      case Step.DISCARD:
        if (unsupported) {
          // Virtio 5.2.6.2 lets a device ignore a discard; the blocks then simply stay.
          this.#canPunch = false;
          return 0;
        }
        return result;
      case Step.ZERO_RANGE:
        if (unsupported) {
          this.#canZeroRange = false;
          this.#start(slot, Step.PUNCH);
          return goesOn;
        }
        return this.#syncAfter(slot, result);
      case Step.PUNCH:
        if (unsupported) {
          this.#canPunch = false;
          this.#startZeroWrite(slot);
          return goesOn;
        }
        if (result === 0 && (this.#table.flags[slot] & BlockFlag.MAY_UNMAP) === 0) {
          this.#start(slot, Step.ALLOCATE);
          return goesOn;
        }
        return this.#syncAfter(slot, result);
      case Step.ALLOCATE:
        // The zeroes are there; that they could not be given blocks again takes nothing from that.
        return this.#syncAfter(slot, unsupported ? 0 : result);
      default:
        return result;
    }
  }

  #startTransfer(slot: number): void {
    const { memoryAlignment } = this.#spec;
    if (memoryAlignment > 1 && !isAligned(this.#table, slot, memoryAlignment)) {
      if (!this.#bounce.take(slot)) {
        this.#sink.onBlockComplete(slot, -Errno.ENOMEM);
        return;
      }
      if (this.#table.op[slot] === BlockOp.WRITE) {
        this.#bounce.copyFromGuest(slot);
      }
    }
    this.#start(slot, Step.TRANSFER);
  }

  #advanceTransfer(slot: number, result: number): number {
    if (result < 0) {
      return result;
    }
    if (result === 0) {
      // The file has become shorter than its node: neither zeroes nor success would be the truth.
      return -Errno.EIO;
    }
    const table = this.#table;
    const bounced = this.#bounce.address[slot] !== 0;
    const left = bounced ? table.length[slot] - this.#bounce.done[slot] : table.length[slot];
    if (result >= left) {
      return 0;
    }
    if (this.#retries[slot]++ >= limits.resubmissionsMax) {
      return -Errno.EIO;
    }
    if (bounced) {
      this.#bounce.done[slot] += result;
    } else {
      table.advance(slot, result);
    }
    this.#start(slot, Step.TRANSFER);
    return goesOn;
  }

  #startSync(slot: number): void {
    if (this.#spec.noFlush) {
      this.#sink.onBlockComplete(slot, 0);
    } else {
      this.#start(slot, Step.SYNC);
    }
  }

  /** Ends a step of write-zeroes: with FUA only when it is on the disk. */
  #syncAfter(slot: number, result: number): number {
    if (result !== 0 || this.#spec.noFlush || (this.#table.flags[slot] & BlockFlag.FUA) === 0) {
      return result;
    }
    this.#start(slot, Step.SYNC);
    return goesOn;
  }

  #startZeroes(slot: number): void {
    const mayUnmap = (this.#table.flags[slot] & BlockFlag.MAY_UNMAP) !== 0;
    if (mayUnmap && this.#canPunch && !this.#spec.ignoreDiscard) {
      this.#start(slot, Step.PUNCH);
      return;
    }
    this.#table.flags[slot] &= ~BlockFlag.MAY_UNMAP;
    if (this.#canZeroRange) {
      this.#start(slot, Step.ZERO_RANGE);
    } else if (this.#canPunch) {
      this.#start(slot, Step.PUNCH);
    } else {
      this.#startZeroWrite(slot);
    }
  }

  #startZeroWrite(slot: number): void {
    if (this.#zeroBuffer === 0) {
      this.#zeroBuffer = mapAnonymous(zeroBufferBytes);
    }
    this.#start(slot, Step.WRITE_ZEROES);
  }

  #advanceZeroWrite(slot: number, result: number): number {
    if (result <= 0) {
      return result === 0 ? -Errno.EIO : result;
    }
    const table = this.#table;
    table.offset[slot] += result;
    table.length[slot] -= result;
    if (table.length[slot] > 0) {
      this.#start(slot, Step.WRITE_ZEROES);
      return goesOn;
    }
    return this.#syncAfter(slot, 0);
  }

  #start(slot: number, step: number): void {
    this.#step[slot] = step;
    if (!this.#prepare(slot, step)) {
      this.#finish(slot, -Errno.ENOMEM);
    }
  }

  #prepare(slot: number, step: number): boolean {
    const table = this.#table;
    const ring = this.#reactor.ring;
    const offset = table.offset[slot];
    const length = table.length[slot];
    switch (step) {
      case Step.TRANSFER:
        return this.#prepareTransfer(slot);
      case Step.SYNC:
        return this.#entry(slot, RingOp.FSYNC, 0, 0, 0, FsyncFlag.DATASYNC);
      case Step.WRITE_ZEROES:
        return this.#entry(
          slot,
          RingOp.WRITE,
          this.#zeroBuffer,
          Math.min(length, zeroBufferBytes),
          offset,
          0,
        );
      default:
        return ring.prepareFallocate(this.#fd, fallocateMode(step), offset, length, this.#source, slot);
    }
  }

  #entry(
    slot: number,
    op: number,
    address: number,
    length: number,
    offset: number,
    opFlags: number,
  ): boolean {
    const { ring } = this.#reactor;
    return ring.prepare(op, this.#fd, address, length, offset, opFlags, this.#sqeFlags, this.#source, slot);
  }

  #prepareTransfer(slot: number): boolean {
    const table = this.#table;
    const write = table.op[slot] === BlockOp.WRITE;
    const durable = write && !this.#spec.noFlush && (table.flags[slot] & BlockFlag.FUA) !== 0;
    const rwFlags = durable ? RwFlag.DSYNC : 0;
    const bounce = this.#bounce.address[slot];
    let op: number = write ? RingOp.WRITE : RingOp.READ;
    let address = table.firstAddress[slot];
    let length = table.length[slot];
    let offset = table.offset[slot];
    if (bounce !== 0) {
      const done = this.#bounce.done[slot];
      address = bounce + done;
      offset += done;
      length -= done;
    } else if (table.segmentCount[slot] > 1) {
      op = write ? RingOp.WRITEV : RingOp.READV;
      address = table.iovecAddress(slot);
      length = table.segmentCount[slot];
    }
    return this.#entry(slot, op, address, length, offset, rwFlags);
  }

  #finish(slot: number, result: number): void {
    this.#step[slot] = Step.IDLE;
    if (this.#bounce.address[slot] !== 0) {
      if (result === 0 && this.#table.op[slot] === BlockOp.READ && !this.#abandoned) {
        this.#bounce.copyToGuest(slot);
      }
      this.#bounce.release(slot);
    }
    this.#sink.onBlockComplete(slot, result);
  }
}

/** The token of entries whose own completion means nothing. */
const ignoredToken = 0xffff_ffff;

function fallocateMode(step: number): number {
  switch (step) {
    case Step.ZERO_RANGE:
      return FallocateMode.ZERO_RANGE | FallocateMode.KEEP_SIZE;
    case Step.ALLOCATE:
      // A file that was cut meanwhile is not to grow again.
      return FallocateMode.KEEP_SIZE;
    default:
      return FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE;
  }
}
