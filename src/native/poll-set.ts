// Hot file: wait allocates nothing and does not throw.
/** Polls in the manner of io_uring's POLL_ADD, made of epoll. */
import { errno, libcCalls, systemCallError } from './ffi.js';

const EPOLL_CLOEXEC = 0o2000000;
const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
/** Once per signal, also of an eventfd that nobody reads: what a multishot poll does. */
const EPOLLET = 0x8000_0000;
const F_DUPFD_CLOEXEC = 1030;

/** struct epoll_event is packed on x86-64 and on nothing else; in 32-bit words. */
const eventWords = process.arch === 'x64' ? 3 : 4;
const dataWord = process.arch === 'x64' ? 1 : 2;
const eventsMax = 64;

export interface ArmedPoll {
  readonly source: number;
  readonly token: number;
  readonly multishot: boolean;
  /** What an event completes with, instead of its mask. */
  readonly result?: number;
  /** A descriptor of our own. */
  readonly fd: number;
}

export class PollSet {
  /** Readable while an event waits to be taken, so an event loop can watch it. */
  readonly fd: number;
  /** By number; a number is never given again, so an event that comes late means nobody instead of the next. */
  readonly #polls = new Map<number, ArmedPoll>();
  readonly #events = new Uint32Array(new ArrayBuffer(eventsMax * eventWords * 4));
  readonly #event = new Uint32Array(new ArrayBuffer(eventWords * 4));
  #next = 0;

  constructor() {
    this.fd = libcCalls.epollCreate(EPOLL_CLOEXEC);
    if (this.fd < 0) {
      throw systemCallError('epoll_create1', errno());
    }
  }

  /**
   * Returns 0 or a negative errno. The descriptor is duplicated: epoll knows a poll by its descriptor's number,
   * and the caller may watch one twice, or close it while it is watched and be given its number again.
   */
  add(fd: number, mask: number, poll: Omit<ArmedPoll, 'fd'>): number {
    const own = libcCalls.fcntlNumber(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
      return -errno();
    }
    this.#event[0] = (mask | EPOLLET) >>> 0;
    this.#event[dataWord] = this.#next;
    if (libcCalls.epollCtl(this.fd, EPOLL_CTL_ADD, own, this.#event) < 0) {
      const code = errno();
      libcCalls.close(own);
      return -code;
    }
    this.#polls.set(this.#next, { ...poll, fd: own });
    this.#next = (this.#next + 1) >>> 0;
    return 0;
  }

  /** Ends one poll of this source and token. Returns whether there was one. */
  remove(source: number, token: number): boolean {
    for (const [number, poll] of this.#polls) {
      if (poll.source === source && poll.token === token) {
        this.#end(number, poll);
        return true;
      }
    }
    return false;
  }

  /** Sleeps until something happens or the time is over. Returns the number of events, or a negative errno. */
  wait(timeoutMs: number): number {
    const count = libcCalls.epollWait(this.fd, this.#events, eventsMax, timeoutMs);
    return count < 0 ? -errno() : count;
  }

  /** What event `n` of the last `wait` tells of; undefined for a poll that has ended. */
  poll(n: number): ArmedPoll | undefined {
    const number = this.#events[n * eventWords + dataWord];
    const poll = this.#polls.get(number);
    if (poll !== undefined && !poll.multishot) {
      this.#end(number, poll);
    }
    return poll;
  }

  /** The mask of event `n` of the last `wait`. */
  mask(n: number): number {
    return this.#events[n * eventWords];
  }

  close(): void {
    for (const { fd } of this.#polls.values()) {
      libcCalls.close(fd);
    }
    libcCalls.close(this.fd);
  }

  #end(number: number, poll: ArmedPoll): void {
    this.#polls.delete(number);
    // Other descriptors of the same open file keep a poll alive in epoll: it is not enough to close ours.
    libcCalls.epollCtl(this.fd, EPOLL_CTL_DEL, poll.fd, this.#event);
    libcCalls.close(poll.fd);
  }
}
