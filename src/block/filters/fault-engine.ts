// Hot file: synchronous, no allocation per request, no throw.
/** A disk that fails as it is told to, for tests: by rules, the same for the same seed and order of requests. */
import type { EventSource, Reactor } from '../../reactor/reactor.js';
import { RingTimer } from '../../reactor/ring-timer.js';
import type { BlockCompletionSink, BlockEngine, BlockOp, FaultEngineSpec } from '../engine.js';
import type { RequestTable } from '../request-table.js';

/** What a request meets. */
export const FaultEffect = {
  /** It ends with the rule's error, and was not done. */
  ERROR: 0,
  /** It starts later. */
  DELAY: 1,
  /** It was done, and ends with the rule's error: data of a short read, a write whose answer was lost. */
  LATE_ERROR: 2,
  /** This request and all that follow wait, as if the storage were not there for a while. */
  DISCONNECT: 3,
} as const;
export type FaultEffect = (typeof FaultEffect)[keyof typeof FaultEffect];

export interface FaultRule {
  readonly effect: FaultEffect;
  /** A BlockOp; absent: any. */
  readonly op?: BlockOp;
  /** Positive. */
  readonly errno: number;
  readonly delayMs: number;
  /** One in so many requests of the kind, by the seed; 1: each. */
  readonly oneIn: number;
  /** Requests of the kind that pass before the rule counts, and how often it then strikes. */
  readonly after: number;
  readonly times: number;
}

const timerToken = 0;
const ignoredToken = 1;

export class FaultEngine implements BlockEngine, BlockCompletionSink, EventSource {
  readonly #rules: readonly FaultRule[];
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #child: BlockEngine;
  /** By rule: requests of its kind, and strikes. */
  readonly #seen: Uint32Array;
  readonly #struck: Uint32Array;
  /** By slot: when it may start, 0 where it does not wait; and the error that is to replace its end. */
  readonly #dueMs: Float64Array;
  readonly #lateErrno: Int32Array;
  readonly #timer: RingTimer;
  #random: number;
  #connectedAtMs = 0;

  constructor(
    spec: FaultEngineSpec,
    context: { table: RequestTable; sink: BlockCompletionSink; reactor: Reactor },
    createChild: (sink: BlockCompletionSink) => BlockEngine,
  ) {
    const { capacity } = context.table;
    this.#rules = spec.rules;
    this.#random = spec.seed >>> 0;
    this.#table = context.table;
    this.#sink = context.sink;
    this.#reactor = context.reactor;
    this.#seen = new Uint32Array(spec.rules.length);
    this.#struck = new Uint32Array(spec.rules.length);
    this.#dueMs = new Float64Array(capacity);
    this.#lateErrno = new Int32Array(capacity);
    this.#child = createChild(this);
    this.#source = context.reactor.add(this);
    const timer = { source: this.#source, token: timerToken, ignoredToken };
    this.#timer = new RingTimer(context.reactor, timer);
  }

  submit(slot: number): void {
    this.#lateErrno[slot] = 0;
    this.#dueMs[slot] = 0;
    const now = performance.now();
    let startAtMs = now < this.#connectedAtMs ? this.#connectedAtMs : 0;
    for (let n = 0; n < this.#rules.length; n++) {
      if (!this.#strikes(n, slot)) {
        continue;
      }
      const rule = this.#rules[n];
      switch (rule.effect) {
        case FaultEffect.ERROR:
          this.#sink.onBlockComplete(slot, -rule.errno);
          return;
        case FaultEffect.LATE_ERROR:
          this.#lateErrno[slot] = rule.errno;
          break;
        case FaultEffect.DISCONNECT:
          this.#connectedAtMs = now + rule.delayMs;
          startAtMs = this.#connectedAtMs;
          break;
        default:
          startAtMs = Math.max(startAtMs, now + rule.delayMs);
      }
    }
    if (startAtMs === 0) {
      this.#child.submit(slot);
    } else {
      this.#dueMs[slot] = startAtMs;
      this.#arm();
    }
  }

  onBlockComplete(slot: number, result: number): void {
    const errno = this.#lateErrno[slot];
    this.#sink.onBlockComplete(slot, result === 0 && errno !== 0 ? -errno : result);
  }

  cancel(): void {
    this.expedite();
    this.#child.cancel();
  }

  expedite(): void {
    this.#startDue(Number.POSITIVE_INFINITY);
    this.#child.expedite?.();
  }

  abandon(): void {
    this.#child.abandon();
  }

  close(): void {
    this.#timer.close();
    this.#reactor.remove(this.#source);
    this.#child.close();
  }

  // The queue drives the engine; as a source it only has a timer.
  poll(): number {
    return 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    return false;
  }

  onCompletion(token: number): void {
    if (token === timerToken) {
      this.#timer.onCompletion();
      this.#startDue(performance.now());
      this.#arm();
    }
  }

  #strikes(n: number, slot: number): boolean {
    const { op, after, times, oneIn } = this.#rules[n];
    if (op !== undefined && op !== this.#table.op[slot]) {
      return false;
    }
    this.#seen[n]++;
    if (this.#seen[n] <= after || this.#struck[n] >= times || (oneIn > 1 && this.#next() % oneIn !== 0)) {
      return false;
    }
    this.#struck[n]++;
    return true;
  }

  /** The splitmix32 steps: from 0 to 2^32 - 1. */
  #next(): number {
    this.#random = (this.#random + 0x9e3779b9) >>> 0;
    let value = this.#random;
    value = Math.imul(value ^ (value >>> 16), 0x21f0aaad);
    value = Math.imul(value ^ (value >>> 15), 0x735a2d97);
    return (value ^ (value >>> 15)) >>> 0;
  }

  #startDue(nowMs: number): void {
    for (let slot = 0; slot < this.#dueMs.length; slot++) {
      if (this.#dueMs[slot] !== 0 && this.#dueMs[slot] <= nowMs) {
        this.#dueMs[slot] = 0;
        this.#child.submit(slot);
      }
    }
  }

  /** Sets a timer for the first that waits, and looks at least a few times a second. */
  #arm(): void {
    let first = 0;
    for (let slot = 0; slot < this.#dueMs.length; slot++) {
      const due = this.#dueMs[slot];
      first = due !== 0 && (first === 0 || due < first) ? due : first;
    }
    if (first === 0 || this.#timer.isArmed) {
      return;
    }
    const waitMs = Math.min(sleepMsMax, Math.max(0, first - performance.now()));
    if (!this.#timer.arm(waitMs)) {
      // The kernel has no memory for a timer.
      this.expedite();
    }
  }
}

const sleepMsMax = 20;
