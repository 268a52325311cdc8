// Hot file: synchronous, no allocation per turn, no throw.
/**
 * One ring, many sources, one loop. Kicks, block I/O and commands are all completions of the ring. On a
 * queue thread `run` sleeps in the kernel; on the main thread `attachToEventLoop` lets libuv do the waiting,
 * for code whose promises need the event loop.
 */
import { limits } from '../base/limits.js';
import { type FdWatcher, watchReadable } from '../native/fd-watcher.js';
import { chooseRing, openRing, type RingKind } from '../native/open-ring.js';
import { type CompletionHandler, CqeFlag, pollIn, pollMultishot, type Ring, RingOp } from '../native/ring.js';
import { RunDelay } from '../native/run-delay.js';
import { PollWindow } from './poll-window.js';

export interface EventSource {
  /** How long a thread may look for work for this source's sake before it sleeps, microseconds; absent: not at all. */
  readonly pollUs?: number;
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
  /** Looks for work only while the calling thread, which is to run the reactor, need not wait for a processor. */
  readonly observesDelay?: boolean;
  /** Entries of the submission queue, a power of two. */
  readonly entries?: number;
  /** Microseconds to look for work before a sleep, at most: instead of what the sources ask for. See PollWindow. */
  readonly pollUs?: number;
  /** What this machine allows, when absent. */
  readonly ring?: RingKind;
}

const defaultEntries = 256;

export class Reactor implements CompletionHandler {
  readonly ring: Ring;
  /** The longest sleep of `run`, in milliseconds. A source that waits for a time shortens it before a sleep. */
  sleepMs: number = limits.sleepMsMax;
  /** Grows with every turn, and when something completed outside of one: whoever caches the time reads it again. */
  turns = 0;
  readonly #sources: (EventSource | undefined)[] = [];
  readonly #pollUs: number | undefined;
  readonly #window = new PollWindow();
  readonly #runDelay: RunDelay | undefined;
  /** Numbers of the sources that are there, for the loops of a turn. */
  #active: number[] = [];
  #stopped = false;
  #wakeScheduled = false;
  #watcher: FdWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #sleepTimer: NodeJS.Timeout | undefined;

  constructor(options: ReactorOptions = {}) {
    this.ring = openRing(options.ring ?? chooseRing().kind, options.entries ?? defaultEntries);
    this.#runDelay = options.observesDelay === true ? RunDelay.open() : undefined;
    this.#pollUs = options.pollUs;
    this.#adjustWindow();
  }

  /** Adds a source. Returns its number, which its ring entries carry. */
  add(source: EventSource): number {
    const number = this.#sources.length;
    this.#sources.push(source);
    this.#active = [...this.#active, number];
    this.#adjustWindow();
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
    this.#adjustWindow();
  }

  /**
   * Watches an eventfd that is never read: a multishot poll completes once per signal. The source arms it
   * again when a completion comes without MORE. It is watched from now on, not from the next turn.
   */
  armPoll(fd: number, source: number, token: number): void {
    this.ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, source, token);
    this.ring.submit();
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
      const work = this.#turn();
      if (this.#window.limitMs === 0) {
        this.#submitAndSleep();
      } else if (work > 0) {
        this.ring.submit();
      } else {
        this.#wait();
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
    clearTimeout(this.#sleepTimer);
    this.#timer = undefined;
    this.#watcher?.close();
    this.#watcher = undefined;
  }

  /** Asks for turns soon, from code that completed something on the event loop. Once for many calls. */
  wake(): void {
    this.turns++;
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
    this.sleepMs = limits.sleepMsMax;
    for (let turn = 0; turn < turnsPerWake && !this.#stopped; turn++) {
      const worked = this.#turn();
      this.ring.submit();
      if (worked === 0 && !this.ring.hasCompletions() && !this.#prepareToSleep()) {
        // What the sources asked to be woken by, which `run` submits with its sleep.
        this.ring.submit();
        this.#wakeInTime();
        return;
      }
    }
    this.wake();
  }

  /** The event loop does not sleep by itself as long as a source wants. */
  #wakeInTime(): void {
    clearTimeout(this.#sleepTimer);
    if (this.sleepMs < limits.sleepMsMax && this.#timer !== undefined) {
      this.#sleepTimer = setTimeout(this.#onWake, Math.ceil(this.sleepMs));
    }
  }

  /** Closes the ring, once, and never inside a turn. The sources have ended what they had in flight. */
  close(): void {
    this.#stopped = true;
    this.detachFromEventLoop();
    this.#runDelay?.close();
    this.ring.close();
  }

  #turn(): number {
    this.turns++;
    const completed = this.ring.reap(this);
    const active = this.#active;
    const found = this.#poll(active);
    this.#publish(active);
    return completed + found + this.ring.pending;
  }

  #poll(active: readonly number[]): number {
    let work = 0;
    for (let n = 0; n < active.length; n++) {
      work += this.#sources[active[n]]?.poll() ?? 0;
    }
    return work;
  }

  #publish(active: readonly number[]): void {
    for (let n = 0; n < active.length; n++) {
      this.#sources[active[n]]?.publish();
    }
  }

  /** One system call for what the turn has prepared and for the sleep. */
  #submitAndSleep(): void {
    if (this.#stopped || this.#prepareToSleep()) {
      this.ring.submit();
    } else {
      this.ring.submitAndWait(this.sleepMs);
    }
  }

  /** Waits for work: looks for it as long as the window is open, and sleeps then. */
  #wait(): void {
    const window = this.#window;
    const since = performance.now();
    if (window.windowMs > 0 && window.wantsDelay(since)) {
      window.observeDelay(since, this.#runDelay?.readMs() ?? 0);
    }
    if (window.windowMs > 0 && this.#spin(since)) {
      window.hit();
      return;
    }
    this.#submitAndSleep();
    window.waited(since, performance.now());
  }

  /**
   * Works without a sleep, and until there was nothing to do for the time of the window. What a look finds is
   * started, and what has ended is shown, before the next look: a front-end that looks for its answer a moment later
   * need not sleep. True: something was found lately.
   */
  #spin(since: number): boolean {
    const window = this.#window;
    let end = since + window.windowMs;
    let previous = since;
    for (;;) {
      let found = false;
      for (let look = 0; look < looksPerClock; look++) {
        if (this.#look()) {
          found = true;
          if (this.#stopped) {
            return true;
          }
        }
      }
      const now = performance.now();
      if (found) {
        if (window.wantsDelay(now)) {
          return true;
        }
        end = now + window.windowMs;
      } else if (now >= end || window.wasPreempted(previous, now)) {
        return false;
      }
      previous = now;
    }
  }

  /** A turn that costs next to nothing when there is nothing to do. Whether there was. */
  #look(): boolean {
    const active = this.#active;
    const work = this.ring.reap(this) + this.#poll(active);
    if (work === 0 && this.ring.pending === 0) {
      return false;
    }
    this.turns++;
    this.#publish(active);
    this.ring.submit();
    return true;
  }

  /** The window of the thread is the longest that a source asks for. */
  #adjustWindow(): void {
    const wanted = this.#active.map((number) => this.#sources[number]?.pollUs ?? 0);
    const pollUs = this.#pollUs ?? Math.max(0, ...wanted);
    if (pollUs / 1000 !== this.#window.limitMs) {
      this.#window.limitMs = pollUs / 1000;
    }
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
/** The clock costs as much as a few looks. */
const looksPerClock = 8;
