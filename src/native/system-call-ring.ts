// Hot file: synchronous, no allocation per entry, no throw after construction.
/**
 * What the project uses of io_uring, made of ordinary system calls, for where io_uring is forbidden: containers'
 * seccomp profiles, kernel.io_uring_disabled. Reads and writes with O_DIRECT are the kernel's older asynchronous
 * ones. The other entries `submit` carries out one after the other on the calling thread, so a request of a slow disk
 * keeps the thread's other queues waiting; polls are epoll's.
 */
import { Errno } from './errno.js';
import { OpenFlag } from './fd.js';
import { addressOf, errno, libcCalls } from './ffi.js';
import { AioOperation, type AioSink, KernelAio } from './kernel-aio.js';
import { PollSet } from './poll-set.js';
import { type CompletionHandler, CqeFlag, FsyncFlag, pollIn, pollMultishot, Ring, RingOp } from './ring.js';

/** By number: C libraries other than glibc do not have the functions. */
const SYS_PREADV2 = process.arch === 'arm64' ? 286 : 327;
const SYS_PWRITEV2 = process.arch === 'arm64' ? 287 : 328;

const CLOCK_MONOTONIC = 1;
const TFD_CLOEXEC = 0o2000000;
const timespecBytes = 16;
const two32 = 0x1_0000_0000;
const F_GETFL = 3;
/** Transfers in flight at most: any more are carried out at once. A system's share is 65536 for all (fs.aio-max-nr). */
const aioEntries = 128;
/** The poll of the asynchronous transfers' own eventfd. No source has that number. */
const aioSource = 0xffff_ffff;

/** The entries, a column each. */
class SubmissionColumns {
  readonly op: Uint8Array;
  readonly fd: Int32Array;
  readonly address: Float64Array;
  readonly length: Uint32Array;
  readonly offset: Float64Array;
  readonly opFlags: Uint32Array;
  readonly source: Uint32Array;
  readonly token: Uint32Array;

  constructor(entries: number) {
    this.op = new Uint8Array(entries);
    this.fd = new Int32Array(entries);
    this.address = new Float64Array(entries);
    this.length = new Uint32Array(entries);
    this.offset = new Float64Array(entries);
    this.opFlags = new Uint32Array(entries);
    this.source = new Uint32Array(entries);
    this.token = new Uint32Array(entries);
  }
}

/** Completions as io_uring lays them out: token, source, result and flags, a 32-bit word each. */
const completionWords = 4;

export class SystemCallRing extends Ring implements AioSink {
  readonly fd: number;
  readonly entries: number;
  readonly #polls = new PollSet();
  readonly #sq: SubmissionColumns;
  readonly #sqMask: number;
  #sqHead = 0;
  #sqTail = 0;
  #cq: Int32Array;
  #cqMask: number;
  #cqHead = 0;
  #cqTail = 0;
  readonly #reapMax: number;
  /** One struct iovec, for the reads and writes of one buffer that carry flags. */
  readonly #iovec = new Uint32Array(new ArrayBuffer(16));
  readonly #iovecAddress = addressOf(this.#iovec);
  /** struct itimerspec, of no interval. */
  readonly #timer = new Uint32Array(new ArrayBuffer(2 * timespecBytes));
  readonly #timerAddress = addressOf(this.#timer);
  /** Opened for the first transfer with O_DIRECT; undefined before, null where the kernel has none. */
  #aio: KernelAio | null | undefined;
  /** The descriptor looked at last within a submission, and whether it has O_DIRECT. */
  #lookedFd = -1;
  #lookedDirect = false;
  /** Whether the last wait has already looked for events: the next reap need not. */
  #looked = false;

  /** Throws SYSTEM_CALL. `entries`: a power of two. */
  constructor(entries: number) {
    super();
    this.fd = this.#polls.fd;
    this.entries = entries;
    this.#sq = new SubmissionColumns(entries);
    this.#sqMask = entries - 1;
    this.#reapMax = entries * 4;
    this.#cq = new Int32Array(this.#reapMax * completionWords);
    this.#cqMask = this.#reapMax - 1;
  }

  get pending(): number {
    return (this.#sqTail - this.#sqHead) | 0;
  }

  prepare(
    op: number,
    fd: number,
    address: number,
    len: number,
    offset: number,
    opFlags: number,
    _sqeFlags: number,
    source: number,
    token: number,
  ): boolean {
    if (this.pending >= this.entries) {
      this.submit();
    }
    const index = this.#sqTail & this.#sqMask;
    const sq = this.#sq;
    sq.op[index] = op;
    sq.fd[index] = fd;
    sq.address[index] = address;
    sq.length[index] = len;
    sq.offset[index] = offset;
    sq.opFlags[index] = opFlags;
    sq.source[index] = source;
    sq.token[index] = token;
    this.#sqTail = (this.#sqTail + 1) | 0;
    return true;
  }

  submit(): number {
    const count = this.pending;
    // A number may be another file's by now.
    this.#lookedFd = -1;
    for (let n = 0; n < count; n++) {
      const index = this.#sqHead & this.#sqMask;
      this.#sqHead = (this.#sqHead + 1) | 0;
      const result = this.#carryOut(index);
      if (result !== armed) {
        this.#complete(this.#sq.source[index], this.#sq.token[index], result, 0);
      }
    }
    this.#aio?.start(this);
    return 0;
  }

  submitAndWait(timeoutMs: number): number {
    this.submit();
    // epoll counts in milliseconds: a little too long is a sleep, a little too short a loop.
    return this.hasCompletions() ? 0 : this.#look(Math.ceil(timeoutMs));
  }

  hasCompletions(): boolean {
    return this.#cqHead !== this.#cqTail || this.#aio?.hasCompletions === true;
  }

  /** At most four submission queues full, as io_uring's own completion queue has it. */
  reap(handler: CompletionHandler): number {
    if (!this.#looked) {
      this.#look(0);
    }
    this.#looked = false;
    this.#aio?.reap(this);
    const count = Math.min((this.#cqTail - this.#cqHead) | 0, this.#reapMax);
    for (let n = 0; n < count; n++) {
      // Read anew each time: the handler may submit, and the queue grow.
      const cq = this.#cq;
      const word = (this.#cqHead & this.#cqMask) * completionWords;
      this.#cqHead = (this.#cqHead + 1) | 0;
      handler.onRingCompletion(cq[word + 1] >>> 0, cq[word] >>> 0, cq[word + 2], cq[word + 3]);
    }
    return count;
  }

  close(): void {
    this.#aio?.close();
    this.#polls.close();
  }

  // AioSink

  complete(source: number, token: number, result: number): void {
    this.#complete(source, token, result, 0);
  }

  /** Turns the events that are there, or come within the time, into completions. Returns 0 or a negative errno. */
  #look(timeoutMs: number): number {
    const count = this.#polls.wait(timeoutMs);
    this.#looked = true;
    for (let n = 0; n < count; n++) {
      const poll = this.#polls.poll(n);
      if (poll !== undefined && poll.source !== aioSource) {
        const flags = poll.multishot ? CqeFlag.MORE : 0;
        this.#complete(poll.source, poll.token, poll.result ?? this.#polls.mask(n), flags);
      }
    }
    return count >= 0 || count === -Errno.EINTR ? 0 : count;
  }

  #complete(source: number, token: number, result: number, flags: number): void {
    if (((this.#cqTail - this.#cqHead) | 0) > this.#cqMask) {
      this.#growCompletions();
    }
    const word = (this.#cqTail & this.#cqMask) * completionWords;
    this.#cq[word] = token;
    this.#cq[word + 1] = source;
    this.#cq[word + 2] = result;
    this.#cq[word + 3] = flags;
    this.#cqTail = (this.#cqTail + 1) | 0;
  }

  /** More was submitted than was reaped: no completion may get lost, as the kernel's overflow list has it. */
  #growCompletions(): void {
    const old = this.#cq;
    const count = this.#cqMask + 1;
    const grown = new Int32Array(old.length * 2);
    for (let n = 0; n < count; n++) {
      const from = ((this.#cqHead + n) & this.#cqMask) * completionWords;
      grown.set(old.subarray(from, from + completionWords), n * completionWords);
    }
    this.#cq = grown;
    this.#cqMask = count * 2 - 1;
    this.#cqHead = 0;
    this.#cqTail = count;
  }

  /** Returns the entry's result, or `armed`: its completions come later. */
  #carryOut(index: number): number {
    const sq = this.#sq;
    const fd = sq.fd[index];
    switch (sq.op[index]) {
      case RingOp.READ:
      case RingOp.WRITE:
      case RingOp.READV:
      case RingOp.WRITEV:
        return this.#isDirect(fd) && this.#prepareAio(index) ? armed : answer(this.#transfer(index));
      case RingOp.FSYNC: {
        const dataOnly = (sq.opFlags[index] & FsyncFlag.DATASYNC) !== 0;
        return answer(dataOnly ? libcCalls.fdatasync(fd) : libcCalls.fsync(fd));
      }
      case RingOp.FALLOCATE:
        return answer(libcCalls.fallocate(fd, sq.length[index], sq.offset[index], sq.address[index]));
      case RingOp.POLL_ADD:
        return this.#armPoll(index);
      case RingOp.TIMEOUT:
        return this.#armTimer(index);
      case RingOp.ASYNC_CANCEL:
        return this.#cancel(sq.address[index]);
      case RingOp.NOP:
        return 0;
      default:
        return -Errno.EINVAL;
    }
  }

  #isDirect(fd: number): boolean {
    if (fd !== this.#lookedFd) {
      const flags = libcCalls.fcntlNumber(fd, F_GETFL, 0);
      this.#lookedFd = fd;
      this.#lookedDirect = flags >= 0 && (flags & OpenFlag.O_DIRECT) !== 0;
    }
    return this.#lookedDirect;
  }

  /** Prepares an asynchronous transfer. False: it can't be one now. */
  #prepareAio(index: number): boolean {
    const aio = this.#aio === undefined ? this.#openAio() : this.#aio;
    if (aio === null || !aio.hasRoom) {
      return false;
    }
    const sq = this.#sq;
    aio.prepare(
      aioOperation(sq.op[index]),
      sq.fd[index],
      sq.address[index],
      sq.length[index],
      sq.offset[index],
      sq.opFlags[index],
      sq.source[index],
      sq.token[index],
    );
    return true;
  }

  #openAio(): KernelAio | null {
    let aio = KernelAio.open(aioEntries) ?? null;
    const poll = { source: aioSource, token: 0, multishot: true };
    if (aio !== null && this.#polls.add(aio.eventFd, pollIn, poll) !== 0) {
      aio.close();
      aio = null;
    }
    this.#aio = aio;
    return aio;
  }

  #transfer(index: number): number {
    const sq = this.#sq;
    const op = sq.op[index];
    const fd = sq.fd[index];
    const flags = sq.opFlags[index];
    const offset = sq.offset[index];
    let address = sq.address[index];
    let length = sq.length[index];
    const read = op === RingOp.READ || op === RingOp.READV;
    if (op === RingOp.READ || op === RingOp.WRITE) {
      if (flags === 0) {
        const call = read ? libcCalls.pread : libcCalls.pwrite;
        return call(fd, address, length, offset);
      }
      const iovec = this.#iovec;
      iovec[0] = address % two32;
      iovec[1] = Math.floor(address / two32);
      iovec[2] = length;
      iovec[3] = 0;
      address = this.#iovecAddress;
      length = 1;
    }
    return libcCalls.syscall6(read ? SYS_PREADV2 : SYS_PWRITEV2, fd, address, length, offset, 0, flags);
  }

  #armPoll(index: number): number {
    const sq = this.#sq;
    const result = this.#polls.add(sq.fd[index], sq.opFlags[index], {
      source: sq.source[index],
      token: sq.token[index],
      multishot: (sq.length[index] & pollMultishot) !== 0,
    });
    return result === 0 ? armed : result;
  }

  /** A timerfd, so that an event loop which watches the ring wakes too. */
  #armTimer(index: number): number {
    const sq = this.#sq;
    const fd = libcCalls.timerfdCreate(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (fd < 0) {
      return -errno();
    }
    libcCalls.memcpy(this.#timerAddress + timespecBytes, sq.address[index], timespecBytes);
    const timer = {
      source: sq.source[index],
      token: sq.token[index],
      multishot: false,
      result: -Errno.ETIME,
    };
    let result = libcCalls.timerfdSettime(fd, 0, this.#timerAddress, 0);
    result = result < 0 ? -errno() : this.#polls.add(fd, pollIn, timer);
    libcCalls.close(fd);
    return result === 0 ? armed : result;
  }

  /** Of what is in flight only polls and timers can be cancelled: a disk's transfer ends when it ends. */
  #cancel(target: number): number {
    const token = target % two32;
    const source = Math.floor(target / two32);
    if (!this.#polls.remove(source, token)) {
      return -Errno.ENOENT;
    }
    this.#complete(source, token, -Errno.ECANCELED, 0);
    return 0;
  }
}

/** A result that no system call gives. */
const armed = -0x8000_0000;

function aioOperation(op: number): number {
  switch (op) {
    case RingOp.READ:
      return AioOperation.PREAD;
    case RingOp.WRITE:
      return AioOperation.PWRITE;
    case RingOp.READV:
      return AioOperation.PREADV;
    default:
      return AioOperation.PWRITEV;
  }
}

function answer(result: number): number {
  return result < 0 ? -errno() : result;
}
