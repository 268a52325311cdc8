// Hot file: synchronous, no allocation per request, no throw.
/** Requests wait until their throttle group lets them go, reads and writes in an order of their own. */
import { Errno } from '../../native/errno.js';
import type { EventSource, Reactor } from '../../reactor/reactor.js';
import { RingTimer } from '../../reactor/ring-timer.js';
import { type BlockCompletionSink, type BlockEngine, BlockOp, type ThrottleEngineSpec } from '../engine.js';
import type { RequestTable } from '../request-table.js';
import { ThrottleGroup } from '../throttle-group.js';

/** A look at the clock at least so often: the group's limits may have changed. */
const sleepMsMax = 100;
const ignoredToken = 2;

export class ThrottleEngine implements BlockEngine, EventSource {
  readonly #group: ThrottleGroup;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #reactor: Reactor;
  readonly #child: BlockEngine;
  readonly #source: number;
  /** Slots that wait, by direction: a ring each, with the time at which a slot may go. */
  readonly #waiting: readonly [Uint16Array, Uint16Array];
  readonly #dueMs: Float64Array;
  readonly #first = new Uint32Array(2);
  readonly #count = new Uint32Array(2);
  readonly #timers: readonly [RingTimer, RingTimer];
  #version: number;

  constructor(
    spec: ThrottleEngineSpec,
    context: { table: RequestTable; sink: BlockCompletionSink; reactor: Reactor },
    child: BlockEngine,
  ) {
    const { capacity } = context.table;
    this.#group = new ThrottleGroup(spec.group);
    this.#version = this.#group.version;
    this.#table = context.table;
    this.#sink = context.sink;
    this.#reactor = context.reactor;
    this.#child = child;
    this.#waiting = [new Uint16Array(capacity), new Uint16Array(capacity)];
    this.#dueMs = new Float64Array(capacity);
    const source = context.reactor.add(this);
    const timer = (token: number) => new RingTimer(context.reactor, { source, token, ignoredToken });
    this.#source = source;
    this.#timers = [timer(0), timer(1)];
  }

  submit(slot: number): void {
    const op = this.#table.op[slot];
    if (op === BlockOp.FLUSH || op === BlockOp.STATUS) {
      this.#child.submit(slot);
      return;
    }
    const direction = op === BlockOp.READ ? 0 : 1;
    const waitMs = this.#group.reserve(direction === 1, this.#table.length[slot]);
    if (waitMs === 0 && this.#count[direction] === 0) {
      this.#child.submit(slot);
      return;
    }
    const ring = this.#waiting[direction];
    this.#dueMs[slot] = performance.now() + waitMs;
    ring[(this.#first[direction] + this.#count[direction]) % ring.length] = slot;
    this.#count[direction]++;
    this.#arm(direction);
  }

  /** Who drains the disk is not to wait for what was only made to wait. */
  expedite(): void {
    for (let direction = 0; direction < 2; direction++) {
      while (this.#count[direction] > 0) {
        this.#child.submit(this.#shift(direction));
      }
    }
    this.#child.expedite?.();
  }

  cancel(): void {
    for (let direction = 0; direction < 2; direction++) {
      while (this.#count[direction] > 0) {
        this.#sink.onBlockComplete(this.#shift(direction), -Errno.ECANCELED);
      }
    }
    this.#child.cancel();
  }

  abandon(): void {
    this.#child.abandon();
  }

  close(): void {
    this.#timers[0].close();
    this.#timers[1].close();
    this.#reactor.remove(this.#source);
    this.#child.close();
  }

  // The queue drives the engine; as a source it only has timers.
  poll(): number {
    return 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    return false;
  }

  onCompletion(token: number): void {
    if (token === ignoredToken) {
      return;
    }
    this.#timers[token].onCompletion();
    if (this.#group.version !== this.#version) {
      this.#version = this.#group.version;
      this.#reserveAgain(0);
      this.#reserveAgain(1);
    }
    const now = performance.now();
    while (this.#count[token] > 0 && this.#dueMs[this.#waiting[token][this.#first[token]]] <= now) {
      this.#child.submit(this.#shift(token));
    }
    if (this.#count[token] > 0) {
      this.#arm(token);
    }
  }

  #shift(direction: number): number {
    const ring = this.#waiting[direction];
    const slot = ring[this.#first[direction]];
    this.#first[direction] = (this.#first[direction] + 1) % ring.length;
    this.#count[direction]--;
    return slot;
  }

  /** The group has other limits, and empty buckets. */
  #reserveAgain(direction: number): void {
    const ring = this.#waiting[direction];
    const now = performance.now();
    for (let n = 0; n < this.#count[direction]; n++) {
      const slot = ring[(this.#first[direction] + n) % ring.length];
      this.#dueMs[slot] = now + this.#group.reserve(direction === 1, this.#table.length[slot]);
    }
  }

  /** Sets a timer for the first that waits, unless there is one. */
  #arm(direction: number): void {
    const timer = this.#timers[direction];
    if (timer.isArmed) {
      return;
    }
    const due = this.#dueMs[this.#waiting[direction][this.#first[direction]]];
    if (!timer.arm(Math.min(sleepMsMax, Math.max(0, due - performance.now())))) {
      // The kernel has no memory for a timer: better too fast than never.
      this.expedite();
    }
  }
}
