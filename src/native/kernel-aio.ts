// Hot file: synchronous, no allocation per entry, no throw after construction.
/**
 * Linux's older asynchronous I/O (io_submit), which container runtimes allow where they forbid io_uring. It keeps reads
 * and writes of files with O_DIRECT in flight; on other files it would do them within the call that starts them.
 */
import { closeFd, createEventFd } from './fd.js';
import { addressOf, errno, libcCalls, viewMemory } from './ffi.js';

/** By number: the C library has no functions for them. */
const onArm = process.arch === 'arm64';
const SYS_IO_SETUP = onArm ? 0 : 206;
const SYS_IO_DESTROY = onArm ? 1 : 207;
const SYS_IO_SUBMIT = onArm ? 2 : 209;
const SYS_IO_GETEVENTS = onArm ? 4 : 208;

/** struct iocb (linux/aio_abi.h), in 32-bit words. */
const IOCB = {
  words: 16,
  data: 0,
  rwFlags: 3,
  /** The operation in the lower half, a priority in the upper. */
  operation: 4,
  fd: 5,
  buffer: 6,
  length: 8,
  offset: 10,
  flags: 14,
  eventFd: 15,
} as const;
const IOCB_FLAG_RESFD = 1;

/** struct io_event, in 32-bit words. */
const EVENT = { words: 8, data: 0, result: 4 } as const;

/** struct aio_ring, which the kernel shares: what it has completed and nobody has taken. In 32-bit words. */
const RING = { head: 2, tail: 3, magic: 4, bytes: 32 } as const;
const ringMagic = 0xa10a10a1;

const two32 = 0x1_0000_0000;

export const AioOperation = { PREAD: 0, PWRITE: 1, PREADV: 7, PWRITEV: 8 } as const;

/** Takes what a transfer was prepared with, and its result: a count or a negative errno. */
export interface AioSink {
  complete(source: number, token: number, result: number): void;
}

export class KernelAio {
  /** Signalled for each completion; never read. */
  readonly eventFd: number;
  readonly #context: number;
  readonly #entries: number;
  readonly #iocbs: Uint32Array;
  readonly #pointers: BigUint64Array;
  readonly #pointersAddress: number;
  readonly #events: Int32Array;
  readonly #eventsAddress: number;
  readonly #ring: Uint32Array;
  #prepared = 0;
  #inFlight = 0;

  /** Undefined where the kernel has none, forbids it, or has given all of it away (fs.aio-max-nr). */
  static open(entries: number): KernelAio | undefined {
    const context = new BigUint64Array(new ArrayBuffer(8));
    if (libcCalls.syscall6(SYS_IO_SETUP, entries, addressOf(context), 0, 0, 0, 0) < 0) {
      return undefined;
    }
    const address = Number(context[0]);
    const ring = new Uint32Array(viewMemory(address, RING.bytes));
    if (ring[RING.magic] === ringMagic) {
      return new KernelAio(address, ring, entries);
    }
    libcCalls.syscall6(SYS_IO_DESTROY, address, 0, 0, 0, 0, 0);
    return undefined;
  }

  private constructor(context: number, ring: Uint32Array, entries: number) {
    this.#context = context;
    this.#ring = ring;
    this.#entries = entries;
    this.eventFd = createEventFd();
    this.#iocbs = new Uint32Array(new ArrayBuffer(entries * IOCB.words * 4));
    this.#pointers = new BigUint64Array(new ArrayBuffer(entries * 8));
    const address = addressOf(this.#iocbs);
    for (let n = 0; n < entries; n++) {
      this.#pointers[n] = BigInt(address + n * IOCB.words * 4);
      this.#iocbs[n * IOCB.words + IOCB.flags] = IOCB_FLAG_RESFD;
      this.#iocbs[n * IOCB.words + IOCB.eventFd] = this.eventFd;
    }
    this.#pointersAddress = addressOf(this.#pointers);
    this.#events = new Int32Array(new ArrayBuffer(entries * EVENT.words * 4));
    this.#eventsAddress = addressOf(this.#events);
  }

  get hasRoom(): boolean {
    return this.#prepared + this.#inFlight < this.#entries;
  }

  /** Whether completions wait to be taken. No system call. */
  get hasCompletions(): boolean {
    const ring = this.#ring;
    return this.#inFlight > 0 && Atomics.load(ring, RING.tail) !== Atomics.load(ring, RING.head);
  }

  /** Prepares a transfer, for which there is room; `start` gives it to the kernel. A vector's length is its entries. */
  prepare(
    operation: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    rwFlags: number,
    source: number,
    token: number,
  ): void {
    const iocbs = this.#iocbs;
    const at = this.#prepared * IOCB.words;
    this.#prepared++;
    iocbs[at + IOCB.data] = token;
    iocbs[at + IOCB.data + 1] = source;
    iocbs[at + IOCB.rwFlags] = rwFlags;
    iocbs[at + IOCB.operation] = operation;
    iocbs[at + IOCB.fd] = fd;
    iocbs[at + IOCB.buffer] = address % two32;
    iocbs[at + IOCB.buffer + 1] = Math.floor(address / two32);
    iocbs[at + IOCB.length] = length;
    iocbs[at + IOCB.offset] = offset % two32;
    iocbs[at + IOCB.offset + 1] = Math.floor(offset / two32);
  }

  /** Gives the kernel what was prepared. A transfer that it refuses ends at once. */
  start(sink: AioSink): void {
    const count = this.#prepared;
    this.#prepared = 0;
    for (let first = 0; first < count; ) {
      const from = this.#pointersAddress + first * 8;
      const taken = libcCalls.syscall6(SYS_IO_SUBMIT, this.#context, count - first, from, 0, 0, 0);
      if (taken > 0) {
        this.#inFlight += taken;
        first += taken;
      } else {
        // The first of them is the one that it refuses.
        const at = first * IOCB.words + IOCB.data;
        sink.complete(this.#iocbs[at + 1], this.#iocbs[at], -errno());
        first++;
      }
    }
  }

  /** Takes the completions that are there. */
  reap(sink: AioSink): void {
    if (!this.hasCompletions) {
      return;
    }
    const call = SYS_IO_GETEVENTS;
    const count = libcCalls.syscall6(call, this.#context, 0, this.#entries, this.#eventsAddress, 0, 0);
    for (let n = 0; n < count; n++) {
      const at = n * EVENT.words;
      this.#inFlight--;
      sink.complete(
        this.#events[at + EVENT.data + 1] >>> 0,
        this.#events[at + EVENT.data] >>> 0,
        this.#events[at + EVENT.result],
      );
    }
  }

  /** Waits for what is in flight. */
  close(): void {
    libcCalls.syscall6(SYS_IO_DESTROY, this.#context, 0, 0, 0, 0, 0);
    closeFd(this.eventFd);
  }
}
