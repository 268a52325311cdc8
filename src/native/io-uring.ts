// Hot file: synchronous, no allocation, no throw after construction.
/**
 * io_uring with its rings as typed arrays over the kernel's maps. The only system call per turn is `enter`.
 *
 * Memory order: the kernel reads sq.tail and writes cq.tail with the barriers of io_uring's ABI;
 * Atomics.store and Atomics.load on our side pair with them, once a batch.
 */
import { limits } from '../base/limits.js';
import { Errno } from './errno.js';
import { closeFd } from './fd.js';
import { addressOf, errno, libcCalls, systemCallError, viewMemory } from './ffi.js';
import { mapFile, unmap } from './memory.js';
import { type CompletionHandler, Ring } from './ring.js';

const SYS_IO_URING_SETUP = 425;
const SYS_IO_URING_ENTER = 426;

const SETUP_CQSIZE = 1 << 3;
const SETUP_CLAMP = 1 << 4;
const SETUP_COOP_TASKRUN = 1 << 8;
const SETUP_TASKRUN_FLAG = 1 << 9;
const SETUP_SINGLE_ISSUER = 1 << 12;
const FEAT_SINGLE_MMAP = 1 << 0;
const FEAT_EXT_ARG = 1 << 8;
/** Of 5.13, like the multishot polls that no flag tells of. */
const FEAT_RSRC_TAGS = 1 << 10;
const featuresNeeded = FEAT_SINGLE_MMAP | FEAT_EXT_ARG | FEAT_RSRC_TAGS;
const ENTER_GETEVENTS = 1 << 0;
const ENTER_EXT_ARG = 1 << 3;
const SQ_CQ_OVERFLOW = 1 << 1;
const SQ_TASKRUN = 1 << 2;

const OFFSET_SQ_RING = 0;
const OFFSET_SQES = 0x1000_0000;

const sqeBytes = 64;
const paramsBytes = 120;
const two32 = 0x1_0000_0000;

/** Offsets in the shared ring map, as the kernel told them (struct io_sqring_offsets, io_cqring_offsets). */
interface RingOffsets {
  sqHead: number;
  sqTail: number;
  sqFlags: number;
  sqArray: number;
  cqHead: number;
  cqTail: number;
  cqes: number;
}

function setup(entries: number, params: Uint32Array): number {
  // Newer flags first; kernels that do not know a flag refuse the whole set with EINVAL.
  const common = SETUP_CQSIZE | SETUP_CLAMP;
  const cooperative = common | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG;
  const attempts = [cooperative | SETUP_SINGLE_ISSUER, cooperative, common];
  let result = -1;
  for (const flags of attempts) {
    params.fill(0);
    params[1] = entries * 4;
    params[2] = flags;
    result = libcCalls.syscall6(SYS_IO_URING_SETUP, entries, addressOf(params), 0, 0, 0, 0);
    if (result >= 0 || errno() !== Errno.EINVAL) {
      break;
    }
  }
  return result;
}

/** Maps both parts of a ring; when it throws, the ring is closed. */
function mapRings(fd: number, ringLength: number, sqesLength: number): { ring: number; sqes: number } {
  const shared = { fd, readable: true, writable: true };
  let ring = 0;
  try {
    ring = mapFile({ ...shared, length: ringLength, offset: OFFSET_SQ_RING });
    return { ring, sqes: mapFile({ ...shared, length: sqesLength, offset: OFFSET_SQES }) };
  } catch (error) {
    if (ring !== 0) {
      unmap(ring, ringLength);
    }
    closeFd(fd);
    throw error;
  }
}

export class IoUring extends Ring {
  readonly fd: number;
  readonly entries: number;
  readonly #cqMask: number;
  readonly #sqMask: number;
  readonly #ringAddress: number;
  readonly #ringLength: number;
  readonly #sqesAddress: number;
  readonly #sqesLength: number;
  /** The ring map as 32-bit words, and the word indices of its fields. */
  readonly #ring: Int32Array;
  readonly #sqHeadWord: number;
  readonly #sqTailWord: number;
  readonly #sqFlagsWord: number;
  readonly #cqHeadWord: number;
  readonly #cqTailWord: number;
  readonly #cqesWord: number;
  readonly #sqe32: Uint32Array;
  readonly #sqe8: Uint8Array;
  readonly #sqe16: Uint16Array;
  /** struct __kernel_timespec, then struct io_uring_getevents_arg. */
  readonly #timeout = new Uint32Array(new ArrayBuffer(40));
  readonly #timeoutArgument: number;
  #sqTail = 0;
  #submitted = 0;

  /** Throws SYSTEM_CALL where the kernel or a seccomp filter refuses io_uring. `entries`: a power of two. */
  constructor(entries: number) {
    super();
    const params = new Uint32Array(new ArrayBuffer(paramsBytes));
    const fd = setup(entries, params);
    if (fd < 0) {
      throw systemCallError('io_uring_setup', errno(), `of ${entries} entries`);
    }
    this.fd = fd;
    this.entries = params[0];
    if ((params[5] & featuresNeeded) !== featuresNeeded) {
      closeFd(fd);
      throw systemCallError('io_uring_setup', Errno.ENOSYS, '(the kernel is older than 5.13)');
    }
    const offsets: RingOffsets = {
      sqHead: params[10],
      sqTail: params[11],
      sqFlags: params[14],
      sqArray: params[16],
      cqHead: params[20],
      cqTail: params[21],
      cqes: params[25],
    };
    const cqEntries = params[1];
    this.#sqMask = this.entries - 1;
    this.#cqMask = cqEntries - 1;
    this.#ringLength = Math.max(offsets.sqArray + this.entries * 4, offsets.cqes + cqEntries * 16);
    this.#sqesLength = this.entries * sqeBytes;
    const maps = mapRings(fd, this.#ringLength, this.#sqesLength);
    this.#ringAddress = maps.ring;
    this.#sqesAddress = maps.sqes;
    this.#ring = new Int32Array(viewMemory(this.#ringAddress, this.#ringLength & ~3));
    this.#sqHeadWord = offsets.sqHead >> 2;
    this.#sqTailWord = offsets.sqTail >> 2;
    this.#sqFlagsWord = offsets.sqFlags >> 2;
    this.#cqHeadWord = offsets.cqHead >> 2;
    this.#cqTailWord = offsets.cqTail >> 2;
    this.#cqesWord = offsets.cqes >> 2;
    const sqes = viewMemory(this.#sqesAddress, this.#sqesLength);
    this.#sqe32 = new Uint32Array(sqes);
    this.#sqe8 = new Uint8Array(sqes);
    this.#sqe16 = new Uint16Array(sqes);
    // The indirection array stays the identity: slot n of the queue is entry n.
    for (let n = 0; n < this.entries; n++) {
      this.#ring[(offsets.sqArray >> 2) + n] = n;
    }
    const argument = addressOf(this.#timeout);
    this.#timeout[4 + 4] = argument % two32;
    this.#timeout[4 + 5] = Math.floor(argument / two32);
    this.#timeout[4 + 2] = 8;
    this.#timeoutArgument = argument + 16;
  }

  get pending(): number {
    return (this.#sqTail - this.#submitted) | 0;
  }

  prepare(
    op: number,
    fd: number,
    address: number,
    len: number,
    offset: number,
    opFlags: number,
    sqeFlags: number,
    source: number,
    token: number,
  ): boolean {
    if (this.pending >= this.entries && !this.#makeRoom()) {
      return false;
    }
    const index = this.#sqTail & this.#sqMask;
    const word = index << 4;
    const sqe = this.#sqe32;
    sqe[word] = 0;
    this.#sqe8[word << 2] = op;
    this.#sqe8[(word << 2) + 1] = sqeFlags;
    this.#sqe16[(word << 1) + 1] = 0;
    sqe[word + 1] = fd;
    // A Uint32Array keeps the low 32 bits of a number, which is cheaper than a remainder.
    sqe[word + 2] = offset;
    sqe[word + 3] = offset / two32;
    sqe[word + 4] = address;
    sqe[word + 5] = address / two32;
    sqe[word + 6] = len;
    sqe[word + 7] = opFlags;
    sqe[word + 8] = token;
    sqe[word + 9] = source;
    sqe[word + 10] = 0;
    sqe[word + 11] = 0;
    sqe[word + 12] = 0;
    sqe[word + 13] = 0;
    this.#sqTail = (this.#sqTail + 1) | 0;
    return true;
  }

  /** Gives a full queue to the kernel, again for a moment where it refuses: an entry must not be overwritten. */
  #makeRoom(): boolean {
    for (let attempt = 0; attempt < limits.resubmissionsMax; attempt++) {
      this.submit();
      if (this.pending < this.entries) {
        return true;
      }
      this.submitAndWait(1);
    }
    return false;
  }

  submit(): number {
    return this.pending === 0 ? 0 : this.#enter(0, 0);
  }

  submitAndWait(timeoutMs: number): number {
    const seconds = Math.floor(timeoutMs / 1000);
    this.#timeout[0] = seconds;
    this.#timeout[2] = Math.floor((timeoutMs - seconds * 1000) * 1e6);
    return this.#enter(1, ENTER_GETEVENTS);
  }

  #enter(minComplete: number, flags: number): number {
    // Pairs with the kernel's acquire of sq.tail: the entries are written before it moves.
    Atomics.store(this.#ring, this.#sqTailWord, this.#sqTail);
    const extended = (flags & ENTER_GETEVENTS) !== 0;
    const result = libcCalls.syscall6(
      SYS_IO_URING_ENTER,
      this.fd,
      this.pending,
      minComplete,
      extended ? flags | ENTER_EXT_ARG : flags,
      extended ? this.#timeoutArgument : 0,
      extended ? 24 : 0,
    );
    const code = result < 0 ? errno() : 0;
    // What the kernel took is what its head says, also where it stopped early or the wait timed out.
    this.#submitted = Atomics.load(this.#ring, this.#sqHeadWord);
    return code === 0 || code === Errno.ETIME || code === Errno.EINTR ? 0 : -code;
  }

  hasCompletions(): boolean {
    return (
      Atomics.load(this.#ring, this.#cqTailWord) !== this.#ring[this.#cqHeadWord] ||
      (this.#ring[this.#sqFlagsWord] & (SQ_CQ_OVERFLOW | SQ_TASKRUN)) !== 0
    );
  }

  /**
   * At most one ring full. What the kernel holds back (an overflow, or completions that wait for us to enter
   * it) is fetched first.
   */
  reap(handler: CompletionHandler): number {
    const ring = this.#ring;
    if ((ring[this.#sqFlagsWord] & (SQ_CQ_OVERFLOW | SQ_TASKRUN)) !== 0) {
      this.#enter(0, ENTER_GETEVENTS);
    }
    let head = ring[this.#cqHeadWord];
    // Pairs with the kernel's release of cq.tail: the entries below it are whole.
    const tail = Atomics.load(ring, this.#cqTailWord);
    const count = (tail - head) | 0;
    for (let n = 0; n < count; n++) {
      const word = this.#cqesWord + ((head & this.#cqMask) << 2);
      const token = ring[word] >>> 0;
      const source = ring[word + 1] >>> 0;
      const result = ring[word + 2];
      const flags = ring[word + 3];
      head = (head + 1) | 0;
      // The entry may be reused from here on, so it was read whole before.
      Atomics.store(ring, this.#cqHeadWord, head);
      handler.onRingCompletion(source, token, result, flags);
    }
    return count;
  }

  close(): void {
    unmap(this.#ringAddress, this.#ringLength);
    unmap(this.#sqesAddress, this.#sqesLength);
    closeFd(this.fd);
  }
}
