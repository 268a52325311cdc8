// Hot file: synchronous, no allocation per request, no throw.
/**
 * What a connection waits for on the ring: that its socket has something to receive, or takes something to send. Tokens
 * have the number of the connection in them, so that late completions of an old one are told from the new one's.
 */
import { pollIn, pollOut, RingOp } from '../../../native/ring.js';
import type { Reactor } from '../../../reactor/reactor.js';

/** Numbers of connections that tokens tell apart. */
const epochs = 0x4000_0000;
const tokenIn = 0;
const tokenOut = 1;
const tokenKinds = 2;
const tokenIgnored = 0xffff_ffff;

/** What a completion means. */
export const Readiness = { NONE: 0, IN: 1, OUT: 2 } as const;

export class SocketWaits {
  /** Under way. */
  in = false;
  out = false;
  readonly #reactor: Reactor;
  readonly #source: number;
  #epoch = 0;

  constructor(reactor: Reactor, source: number) {
    this.#reactor = reactor;
    this.#source = source;
  }

  /** There is a new connection, and nothing under way on it. */
  begin(): void {
    this.#epoch = (this.#epoch + 1) % epochs;
    this.in = false;
    this.out = false;
  }

  waitIn(fd: number): void {
    this.in = true;
    this.#wait(fd, pollIn, tokenIn);
  }

  waitOut(fd: number): void {
    this.out = true;
    this.#wait(fd, pollOut, tokenOut);
  }

  /** Returns a Readiness. */
  onCompletion(token: number): number {
    if (Math.floor(token / tokenKinds) !== this.#epoch) {
      return Readiness.NONE;
    }
    if (token % tokenKinds === tokenOut) {
      this.out = false;
      return Readiness.OUT;
    }
    this.in = false;
    return Readiness.IN;
  }

  /** The connection is over. */
  forget(): void {
    const { ring } = this.#reactor;
    const base = this.#epoch * tokenKinds;
    if (this.in) {
      ring.prepareCancel({ source: this.#source, token: base + tokenIn }, this.#source, tokenIgnored);
    }
    if (this.out) {
      ring.prepareCancel({ source: this.#source, token: base + tokenOut }, this.#source, tokenIgnored);
    }
    this.begin();
  }

  #wait(fd: number, events: number, kind: number): void {
    const token = this.#epoch * tokenKinds + kind;
    this.#reactor.ring.prepare(RingOp.POLL_ADD, fd, 0, 0, 0, events, 0, this.#source, token);
  }
}
