// Hot file: synchronous, no allocation per turn, no throw.
/**
 * One io_uring, many sources, one loop. Kicks, block I/O and commands are all completions of the ring. On a
 * queue thread `run` sleeps in the kernel; on the main thread `attachToEventLoop` lets libuv do the waiting,
 * for code whose promises need the event loop.
 */
import { limits } from '../base/limits.js';
import { type FdWatcher, watchReadable } from '../native/fd-watcher.js';
import {
  type CompletionHandler,
  CqeFlag,
  IoUring,
  pollIn,
  pollMultishot,
  RingOp,
} from '../native/io-uring.js';

export interface EventSource {
  /** Looks for new work and starts it. Returns how much it found; 0 lets the reactor sleep. */
  poll(): number;
  /** Shows the outside what the turn has finished: once a turn, after every source was polled. */
  publish(): void;
  /** One of the source's ring entries ended. */
  onCompletion(token: number, result: number, flags: number): void;
  /** The last look before a sleep, with notifications on. True: there is work after all. */
  prepareToSleep(): boolean;
}

export interface ReactorOptions {
  /** Entries of the submission queue, a power of two. */
  readonly entries?: number;
  /** Microseconds to keep looking for work before a sleep. 0: none. */
  readonly pollUs?: number;
}

const defaultEntries = 256;

export class Reactor implements CompletionHandler {
  readonly ring: IoUring;
  /** The longest sleep of `run`, in milliseconds. A source that waits for a time shortens it before a sleep. */
  sleepMs: number = limits.sleepMsMax;
  readonly #sources: (EventSource | undefined)[] = [];
  readonly #pollUs: number;
  /** Numbers of the sources that are there, for the loops of a turn. */
  #active: number[] = [];
  #stopped = false;
  #wakeScheduled = false;
  #watcher: FdWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: ReactorOptions = {}) {
    this.ring = new IoUring(options.entries ?? defaultEntries);
    this.#pollUs = options.pollUs ?? 0;
  }

  /** Adds a source. Returns its number, which its ring entries carry. */
  add(source: EventSource): number {
    const number = this.#sources.length;
    this.#sources.push(source);
    this.#active = [...this.#active, number];
    return number;
  }

  /**
   * Takes a source away. Its number is never given again, so that a completion which comes late reaches
   * nobody instead of the next source. Nor is the source called again in a turn that is under way: what it
   * works on may be gone.
   */
  remove(number: number): void {
    this.#sources[number] = undefined;
    this.#active = this.#active.filter((other) => other !== number);
  }

  /**
   * Watches an eventfd that is never read: a multishot poll completes once per signal. The source arms it
   * again when a completion comes without MORE.
   */
  armPoll(fd: number, source: number, token: number): void {
    this.ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, source, token);
  }

  static isArmed(flags: number): boolean {
    return (flags & CqeFlag.MORE) !== 0;
  }

  onRingCompletion(source: number, token: number, result: number, flags: number): void {
    this.#sources[source]?.onCompletion(token, result, flags);
  }

  /** Works until `stop`. For queue threads: it sleeps inside the kernel and starves the event loop. */
  run(): void {
    while (!this.#stopped) {
      if (this.#turn() > 0) {
        this.ring.submit();
      } else if (!this.#spin() && !this.#prepareToSleep()) {
        this.ring.submitAndWait(this.sleepMs);
      }
    }
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Lets the event loop run the turns, each when the ring has completions. `detachFromEventLoop` ends it. */
  attachToEventLoop(): void {
    this.#watcher = watchReadable(this.ring.fd, () => this.runUntilIdle());
    // As run's bounded sleep does: a kick that gets lost costs this long, not for ever.
    this.#timer = setInterval(() => this.runUntilIdle(), limits.sleepMsMax);
    this.runUntilIdle();
  }

  detachFromEventLoop(): void {
    clearInterval(this.#timer);
    this.#watcher?.close();
    this.#watcher = undefined;
  }

  /** Asks for turns soon, from code that completed something on the event loop. Once for many calls. */
  wake(): void {
    if (!this.#wakeScheduled) {
      this.#wakeScheduled = true;
      setImmediate(this.#onWake);
    }
  }

  readonly #onWake = (): void => {
    this.#wakeScheduled = false;
    if (!this.#stopped) {
      this.runUntilIdle();
    }
  };

  /** Turns until there is nothing to do, a bounded number of them: the event loop wants its share. */
  runUntilIdle(): void {
    for (let turn = 0; turn < turnsPerWake && !this.#stopped; turn++) {
      const worked = this.#turn();
      this.ring.submit();
      if (worked === 0 && !this.ring.hasCompletions() && !this.#prepareToSleep()) {
        return;
      }
    }
    this.wake();
  }

  /** Closes the ring, once, and never inside a turn. The sources have ended what they had in flight. */
  close(): void {
    this.#stopped = true;
    this.detachFromEventLoop();
    this.ring.close();
  }

  #turn(): number {
    let work = this.ring.reap(this);
    const active = this.#active;
    for (let n = 0; n < active.length; n++) {
      work += this.#sources[active[n]]?.poll() ?? 0;
    }
    for (let n = 0; n < active.length; n++) {
      this.#sources[active[n]]?.publish();
    }
    return work + this.ring.pending;
  }

  /** Looks for work for a while without a system call. True: a turn will find something. */
  #spin(): boolean {
    if (this.#pollUs === 0) {
      return false;
    }
    const end = performance.now() + this.#pollUs / 1000;
    const active = this.#active;
    do {
      if (this.ring.hasCompletions()) {
        return true;
      }
      for (let n = 0; n < active.length; n++) {
        if ((this.#sources[active[n]]?.poll() ?? 0) > 0) {
          return true;
        }
      }
    } while (performance.now() < end);
    return false;
  }

  #prepareToSleep(): boolean {
    let work = false;
    const active = this.#active;
    for (let n = 0; n < active.length; n++) {
      work = this.#sources[active[n]]?.prepareToSleep() || work;
    }
    return work;
  }
}

const turnsPerWake = 64;
