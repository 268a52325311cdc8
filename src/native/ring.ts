/**
 * What a reactor needs of its ring: entries are prepared, given to the kernel in batches, and come back as
 * completions. The vocabulary is io_uring's, and the numbers are those of linux/io_uring.h.
 */

export const RingOp = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  /** `address`: a struct __kernel_timespec, `len` 1. Ends with -ETIME when the time is over. */
  TIMEOUT: 11,
  ASYNC_CANCEL: 14,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
} as const;

export const SqeFlag = { ASYNC: 16 } as const;
export const CqeFlag = { MORE: 2 } as const;
export const FsyncFlag = { DATASYNC: 1 } as const;
export const RwFlag = { DSYNC: 2 } as const;
/** POLL_ADD's len: the poll stays armed after it fired. */
export const pollMultishot = 1;
export const pollIn = 1;
export const pollOut = 4;

export interface CompletionHandler {
  /** `source` and `token` are what the entry was prepared with; `result` is the call's, or a negative errno. */
  onRingCompletion(source: number, token: number, result: number, flags: number): void;
}

const two32 = 0x1_0000_0000;

/** A ring belongs to the thread that made it. */
export abstract class Ring {
  /** Becomes readable when something happens outside of this thread, for an event loop to watch. */
  abstract readonly fd: number;
  /** Entries that can be prepared before a submission. */
  abstract readonly entries: number;
  /** Entries prepared and not yet given to the kernel. */
  abstract readonly pending: number;
  /**
   * Prepares an entry; `submit` or `submitAndWait` starts it. A full queue is submitted first. Returns false
   * where the kernel takes nothing more (it is out of memory): nothing was prepared then. `len` and `opFlags`
   * are the operation's own (struct io_uring_sqe).
   */
  abstract prepare(
    op: number,
    fd: number,
    address: number,
    len: number,
    offset: number,
    opFlags: number,
    sqeFlags: number,
    source: number,
    token: number,
  ): boolean;

  /** fallocate has its length where others have an address, and its mode where they have a length. */
  prepareFallocate(
    fd: number,
    mode: number,
    offset: number,
    length: number,
    source: number,
    token: number,
  ): boolean {
    return this.prepare(RingOp.FALLOCATE, fd, length, mode, offset, 0, 0, source, token);
  }

  /** Asks for the cancellation of the entry prepared with this source and token. */
  prepareCancel(target: { source: number; token: number }, source: number, token: number): void {
    this.prepare(RingOp.ASYNC_CANCEL, -1, target.token + target.source * two32, 0, 0, 0, 0, source, token);
  }

  /** Gives the prepared entries to the kernel. Returns 0 or a negative errno. */
  abstract submit(): number;
  /** Gives the prepared entries to the kernel and sleeps until a completion is there or the time is over. */
  abstract submitAndWait(timeoutMs: number): number;
  /** Whether completions are known to be there to be reaped. No system call. */
  abstract hasCompletions(): boolean;
  /** Hands the completions that are there now to the handler, a bounded number. Returns how many. */
  abstract reap(handler: CompletionHandler): number;
  /** Releases what the ring holds; what is in flight is cancelled. Nothing may touch the ring afterwards. */
  abstract close(): void;
}
