/**
 * Keeps the event loop awake for some tens of microseconds after a reply, where clients answer that fast: on many
 * machines a process that sleeps takes longer to wake than a request takes from end to end. One for a server.
 */

/** So many answers that came too late in a row end the waiting, and as many that came in time start it. */
const trust = 4;

export class StayAwake {
  readonly #limitMs: number;
  #repliedMs = Number.NEGATIVE_INFINITY;
  #score = 0;
  #isSpinning = false;

  /** 0: the event loop sleeps when it has nothing to do. */
  constructor(pollUs: number) {
    this.#limitMs = pollUs / 1000;
  }

  /** A client has sent something: was it worth waiting for? */
  onReceived(): void {
    if (this.#limitMs > 0) {
      const inTime = performance.now() - this.#repliedMs <= this.#limitMs;
      this.#score = inTime ? Math.min(trust, this.#score + 1) : Math.max(-trust, this.#score - 1);
    }
  }

  /** A client has all its replies, and the next request may be on its way. */
  onReplied(): void {
    if (this.#limitMs > 0) {
      this.#repliedMs = performance.now();
      if (!this.#isSpinning && this.#score > 0) {
        this.#isSpinning = true;
        setImmediate(this.#spin);
      }
    }
  }

  readonly #spin = (): void => {
    if (performance.now() - this.#repliedMs < this.#limitMs) {
      setImmediate(this.#spin);
    } else {
      this.#isSpinning = false;
    }
  };
}
