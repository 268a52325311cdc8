// Hot file: synchronous, no allocation after construction, no throw.
/**
 * Keeps so many requests in flight on a node's engine, until its time is over. The requests are made where queues would
 * make them, beside the engine on its thread; what is missing is the front-end.
 */
import { randomFillSync } from 'node:crypto';
import { createEngine } from '../../block/create-engine.js';
import { type BlockCompletionSink, type BlockEngine, BlockOp, type EngineSpec } from '../../block/engine.js';
import { RequestTable } from '../../block/request-table.js';
import { AlignedPool } from '../../memory/aligned-pool.js';
import { viewBytes } from '../../native/fd.js';
import { mapAnonymous, unmap } from '../../native/memory.js';
import type { EventSource, Reactor } from '../../reactor/reactor.js';
import type { LoadCounters } from './load-counters.js';

/** Words of the memory by which the main thread conducts all jobs. */
export const Control = { STARTED: 0, STOPPED: 1 } as const;
export const controlBytes = 2 * Int32Array.BYTES_PER_ELEMENT;

/** A thread that has nothing to do looks at the clock so often. */
const sleepMsMax = 100;
/** What does not end by itself so long after the end is cancelled. */
export const cancelAfterMs = 10_000;

export interface LoadSpec {
  readonly engine: EngineSpec;
  readonly isRandom: boolean;
  /** 100: reads only, 0: writes only. */
  readonly readPercent: number;
  readonly blockBytes: number;
  readonly depth: number;
  /** Where the blocks begin, bytes, and how many there are. */
  readonly offset: number;
  readonly blocks: number;
  /** Where a sequential job begins. */
  readonly firstBlock: number;
  /** What ends before this is not counted. */
  readonly rampMs: number;
  readonly runtimeMs: number;
}

export interface LoadContext {
  readonly reactor: Reactor;
  readonly counters: LoadCounters;
  readonly control: Int32Array;
  /** Nothing is in flight any more. */
  readonly onDone: () => void;
}

export class LoadGenerator implements BlockCompletionSink, EventSource {
  readonly #spec: LoadSpec;
  readonly #context: LoadContext;
  readonly #table: RequestTable;
  readonly #pool = new AlignedPool();
  readonly #engine: BlockEngine;
  readonly #source: number;
  /** A block for each slot. */
  readonly #memory: number;
  readonly #startedMs: Float64Array;
  #nextBlock: number;
  #countFromMs = 0;
  #endMs = 0;
  #isRunning = false;
  #isCancelled = false;
  #isDone = false;

  constructor(spec: LoadSpec, context: LoadContext) {
    const { reactor } = context;
    this.#spec = spec;
    this.#context = context;
    this.#nextBlock = spec.firstBlock;
    this.#table = new RequestTable(spec.depth, 1);
    this.#startedMs = new Float64Array(spec.depth);
    this.#memory = mapAnonymous(spec.depth * spec.blockBytes);
    if (spec.readPercent < 100) {
      randomFillSync(viewBytes(this.#memory, spec.depth * spec.blockBytes));
    }
    this.#engine = createEngine(spec.engine, { table: this.#table, sink: this, reactor, pool: this.#pool });
    this.#source = reactor.add(this);
  }

  /** From now on; the reactor's next turn makes the first requests. */
  start(): void {
    const now = performance.now();
    this.#countFromMs = now + this.#spec.rampMs;
    this.#endMs = this.#countFromMs + this.#spec.runtimeMs;
    this.#isRunning = true;
  }

  poll(): number {
    const now = performance.now();
    if (!this.#isRunning) {
      this.#drain(now);
      return 0;
    }
    if (now >= this.#endMs || Atomics.load(this.#context.control, Control.STOPPED) !== 0) {
      this.#endMs = Math.min(now, this.#endMs);
      this.#isRunning = false;
      this.#drain(now);
      return 0;
    }
    const { depth } = this.#spec;
    let started = 0;
    // An engine may complete a request at once: a turn starts so many, and not more.
    while (started < depth && this.#table.inFlight < depth) {
      this.#submit(now);
      started++;
    }
    return started;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    const { reactor } = this.#context;
    const untilEnd = Math.max(1, this.#endMs - performance.now());
    reactor.sleepMs = Math.min(sleepMsMax, this.#isRunning ? untilEnd : sleepMsMax);
    // What has ended at once, or since the last look, makes room for more.
    return this.#isRunning && this.#table.inFlight < this.#spec.depth;
  }

  onCompletion(): void {}

  onBlockComplete(slot: number, result: number): void {
    const now = performance.now();
    const { counters } = this.#context;
    if (result < 0) {
      counters.countError(-result);
    } else if (now >= this.#countFromMs) {
      const isWrite = this.#table.op[slot] === BlockOp.WRITE;
      counters.count(isWrite, this.#spec.blockBytes, now - this.#startedMs[slot]);
    }
    this.#table.release(slot);
  }

  /** Nothing is in flight, or it was given up. Outside of a turn. */
  close(): void {
    this.#context.reactor.remove(this.#source);
    this.#engine.close();
    this.#table.close();
    this.#pool.close();
    unmap(this.#memory, this.#spec.depth * this.#spec.blockBytes);
  }

  #submit(now: number): void {
    const { isRandom, readPercent, blockBytes, offset, blocks } = this.#spec;
    const table = this.#table;
    const slot = table.take();
    const block = isRandom ? Math.floor(Math.random() * blocks) : this.#nextBlock;
    this.#nextBlock = this.#nextBlock + 1 < blocks ? this.#nextBlock + 1 : 0;
    const isRead = readPercent === 100 || (readPercent > 0 && Math.random() * 100 < readPercent);
    table.op[slot] = isRead ? BlockOp.READ : BlockOp.WRITE;
    table.offset[slot] = offset + block * blockBytes;
    table.addSegment(slot, this.#memory + slot * blockBytes, blockBytes);
    this.#startedMs[slot] = now;
    this.#engine.submit(slot);
  }

  #drain(now: number): void {
    if (this.#isDone || this.#endMs === 0) {
      return;
    }
    if (this.#table.inFlight === 0) {
      this.#isDone = true;
      this.#context.onDone();
    } else if (!this.#isCancelled && now > this.#endMs + cancelAfterMs) {
      this.#isCancelled = true;
      this.#engine.cancel();
    }
  }
}
