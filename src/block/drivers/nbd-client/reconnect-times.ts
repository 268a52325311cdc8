// Hot file: synchronous, no allocation, no throw.
/** When a connection is tried again, and until when requests wait for one. Times are performance.now()'s. */

/** How long requests wait for a connection that was never there, or that was closed by ourselves. */
const firstHoldMs = 10_000;
const retryMsMin = 100;
const retryMsMax = 5000;

export class ReconnectTimes {
  /** Attempts go on until then. */
  holdUntilMs = 0;
  /** Before that there is no further attempt. */
  retryAtMs = 0;
  readonly #delayMs: number;
  #retryMs = retryMsMin;
  #retries = false;

  /** How long requests wait for a connection that broke. */
  constructor(delayMs: number) {
    this.#delayMs = delayMs;
  }

  /** A connection is wanted that nobody has broken. */
  beginFirst(now: number): void {
    this.#hold(now + Math.max(firstHoldMs, this.#delayMs));
  }

  /** One attempt for a request. False: the last one failed just now. */
  beginOnce(now: number): boolean {
    if (now < this.retryAtMs) {
      return false;
    }
    this.holdUntilMs = now + firstHoldMs;
    this.#retries = false;
    this.#retryMs = retryMsMin;
    return true;
  }

  /** A connection broke. A server that takes connections and answers nothing is not waited for again and again. */
  onLost(now: number, answered: boolean): void {
    if (answered || now >= this.holdUntilMs) {
      this.#hold(now + this.#delayMs);
    }
    if (answered) {
      this.#retryMs = retryMsMin;
    }
  }

  /** An attempt failed. True: there is another one at `retryAtMs`; false: it was the last. */
  onFailed(now: number): boolean {
    this.retryAtMs = now + this.#retryMs;
    this.#retryMs = Math.min(this.#retryMs * 2, retryMsMax);
    if (!this.#retries || now >= this.holdUntilMs) {
      return false;
    }
    this.retryAtMs = Math.min(this.retryAtMs, this.holdUntilMs);
    return true;
  }

  /** Nobody waits any more. */
  onOver(now: number): void {
    this.retryAtMs = now + retryMsMin;
  }

  #hold(untilMs: number): void {
    this.holdUntilMs = untilMs;
    this.#retries = true;
  }
}
