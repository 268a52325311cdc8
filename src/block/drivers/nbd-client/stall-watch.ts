// Hot file: synchronous, no allocation per request, no throw.
/** Half a reply, or half a request, and then nothing: how long it has been so. */

export class StallWatch {
  readonly #limitMs: number;
  #progress = 0;
  #seen = 0;
  #sinceMs = 0;

  constructor(limitMs: number) {
    this.#limitMs = limitMs;
  }

  /** The socket was read or written. */
  onProgress(): void {
    this.#progress++;
  }

  /** Whether nothing has moved for too long. `isInMiddle`: of a message. */
  hasStalled(isInMiddle: boolean): boolean {
    if (!isInMiddle) {
      this.#sinceMs = 0;
      return false;
    }
    const now = performance.now();
    if (this.#sinceMs === 0 || this.#seen !== this.#progress) {
      this.#seen = this.#progress;
      this.#sinceMs = now;
      return false;
    }
    return now - this.#sinceMs > this.#limitMs;
  }
}
