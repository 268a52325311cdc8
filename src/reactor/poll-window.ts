// Hot file: synchronous, no allocation, no throw.
/**
 * How long a thread looks for work before it sleeps. A sleep costs a system call on each side and, on an idle
 * processor, tens of microseconds to wake from; a look costs a processor. So the window follows what happened:
 * it is open while waits end within its limit, closes while they do not, and stays shut for a while when
 * others want the processor too. Times are milliseconds of one clock.
 */

/** Below this a window is not worth opening: halving ends here. */
const windowMsMin = 0.004;
/** A look that takes longer than this was no look: the thread had lost its processor to somebody else. */
const preemptedMs = 0.2;
/** How long the window stays shut then, doubled each time up to the bound. */
const holdMsMin = 1;
const holdMsMax = 64;
/**
 * How often to ask whether the thread waits for a processor, and from which share of the time on it is too much. On a
 * few processors a front-end and a server that answer each other by turns take a quarter of its time, and a look still
 * spares them the sleep in between.
 */
const pressureEveryMs = 5;
const pressureShare = 1 / 3;
const pressureHoldMs = 50;

export class PollWindow {
  #limitMs = 0;
  #windowMs = 0;
  #holdMs = holdMsMin;
  #heldUntilMs = 0;
  /** The last time the thread's delay was observed, and what it was. */
  #observedMs = Number.NEGATIVE_INFINITY;
  #delayMs = 0;

  /** The longest wait that is worth a processor; 0: none is. */
  get limitMs(): number {
    return this.#limitMs;
  }

  set limitMs(limitMs: number) {
    this.#limitMs = limitMs;
    this.#windowMs = limitMs;
  }

  /** How long to look now; 0: sleep at once. */
  get windowMs(): number {
    return this.#windowMs;
  }

  /** Whether the last look took so long that somebody else ran meanwhile; the window is shut then. */
  wasPreempted(previousMs: number, nowMs: number): boolean {
    if (nowMs - previousMs < preemptedMs) {
      return false;
    }
    this.#windowMs = 0;
    this.#heldUntilMs = nowMs + this.#holdMs;
    this.#holdMs = Math.min(this.#holdMs * 2, holdMsMax);
    return true;
  }

  /** Whether it is time to observe the thread's delay before the next look. */
  wantsDelay(nowMs: number): boolean {
    return nowMs - this.#observedMs >= pressureEveryMs;
  }

  /**
   * The thread has waited so long for a processor, in all. Where there are more threads than processors, who
   * looks for work takes from who makes it; who sleeps is let run at once when there is some.
   */
  observeDelay(nowMs: number, delayMs: number): void {
    const isPressed = delayMs - this.#delayMs > (nowMs - this.#observedMs) * pressureShare;
    this.#observedMs = nowMs;
    this.#delayMs = delayMs;
    if (isPressed) {
      this.#windowMs = 0;
      this.#heldUntilMs = Math.max(this.#heldUntilMs, nowMs + pressureHoldMs);
    }
  }

  /** A look found something within the window. */
  hit(): void {
    this.#holdMs = Math.max(holdMsMin, this.#holdMs * 0.999);
  }

  /** A wait, looked through or slept through, began and ended at these times. */
  waited(sinceMs: number, nowMs: number): void {
    if (this.#limitMs === 0 || nowMs < this.#heldUntilMs) {
      return;
    }
    if (nowMs - sinceMs <= this.#limitMs) {
      this.#windowMs = this.#limitMs;
    } else {
      const half = this.#windowMs / 2;
      this.#windowMs = half < windowMsMin ? 0 : half;
    }
  }
}
