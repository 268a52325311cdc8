// Hot file: synchronous, no allocation after construction, no throw.
/** A timer of an event source: its completion comes under a token of the source's, and another one under a token to ignore. */
import { addressOf } from '../native/ffi.js';
import { RingOp } from '../native/ring.js';
import type { Reactor } from './reactor.js';

/** struct __kernel_timespec: 64 bits of seconds and of nanoseconds. */
const timespecWords = 4;
const nanosecondsWord = 2;

export class RingTimer {
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #token: number;
  readonly #ignoredToken: number;
  readonly #timespec = new Uint32Array(new ArrayBuffer(timespecWords * 4));
  readonly #address = addressOf(this.#timespec);
  #isArmed = false;

  constructor(
    reactor: Reactor,
    options: { readonly source: number; readonly token: number; readonly ignoredToken: number },
  ) {
    this.#reactor = reactor;
    this.#source = options.source;
    this.#token = options.token;
    this.#ignoredToken = options.ignoredToken;
  }

  get isArmed(): boolean {
    return this.#isArmed;
  }

  /** Sets it, less than a second ahead. False: the kernel has no memory for it. It is not set already. */
  arm(waitMs: number): boolean {
    this.#timespec[nanosecondsWord] = Math.ceil(waitMs * 1e6);
    const { ring } = this.#reactor;
    this.#isArmed = ring.prepare(RingOp.TIMEOUT, -1, this.#address, 1, 0, 0, 0, this.#source, this.#token);
    return this.#isArmed;
  }

  /** Its completion came. */
  onCompletion(): void {
    this.#isArmed = false;
  }

  close(): void {
    if (this.#isArmed) {
      const armed = { source: this.#source, token: this.#token };
      this.#reactor.ring.prepareCancel(armed, this.#source, this.#ignoredToken);
    }
  }
}
