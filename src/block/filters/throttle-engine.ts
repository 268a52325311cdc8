// Hot file: synchronous, no allocation per request, no throw.
/** Requests wait until their throttle group lets them go, reads and writes in an order of their own. */
import { Errno } from '../../native/errno.js';
import { addressOf } from '../../native/ffi.js';
import { RingOp } from '../../native/ring.js';
import type { EventSource, Reactor } from '../../reactor/reactor.js';
import { type BlockCompletionSink, type BlockEngine, BlockOp, type ThrottleEngineSpec } from '../engine.js';
import type { RequestTable } from '../request-table.js';
import { ThrottleGroup } from '../throttle-group.js';

/** A look at the clock at least so often: the group's limits may have changed. */
const sleepMsMax = 100;
const timespecBytes = 16;
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
  readonly #isArmed = new Uint8Array(2);
  /** struct __kernel_timespec, one a direction. */
  readonly #timespecs = new Uint32Array(new ArrayBuffer(2 * timespecBytes));
  readonly #timespecAddress: number;
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
    this.#timespecAddress = addressOf(this.#timespecs);
    this.#source = context.reactor.add(this);
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
    for (let direction = 0; direction < 2; direction++) {
      if (this.#isArmed[direction] !== 0) {
        const armed = { source: this.#source, token: direction };
        this.#reactor.ring.prepareCancel(armed, this.#source, ignoredToken);
      }
    }
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
    this.#isArmed[token] = 0;
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
    if (this.#isArmed[direction] !== 0) {
      return;
    }
    const due = this.#dueMs[this.#waiting[direction][this.#first[direction]]];
    const waitMs = Math.min(sleepMsMax, Math.max(0, due - performance.now()));
    // Below a second: the nanoseconds' low word is all.
    this.#timespecs[4 * direction + 2] = Math.ceil(waitMs * 1e6);
    const address = this.#timespecAddress + direction * timespecBytes;
    const { ring } = this.#reactor;
    this.#isArmed[direction] = ring.prepare(RingOp.TIMEOUT, -1, address, 1, 0, 0, 0, this.#source, direction)
      ? 1
      : 0;
    if (this.#isArmed[direction] === 0) {
      // The kernel has no memory for a timer: better too fast than never.
      this.expedite();
    }
  }
}
