// Hot: synchronous but for the promises that it gives.
/**
 * Requests on a block node from the main thread, without a queue: for NBD clients and whoever else works with
 * promises. The engine is the node's own, the one that queue threads build, and what is asked in one turn of the
 * event loop goes to the kernel together.
 */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { AlignedPool } from '../memory/aligned-pool.js';
import { systemCallError } from '../native/ffi.js';
import { acquireEventLoopReactor, releaseEventLoopReactor } from '../reactor/event-loop-reactor.js';
import type { Reactor } from '../reactor/reactor.js';
import { createEngine } from './create-engine.js';
import { detectZeroWrite } from './detect-zeroes.js';
import { type BlockCompletionSink, type BlockEngine, BlockOp } from './engine.js';
import type { BlockNode } from './node.js';
import { RequestTable } from './request-table.js';

/** Requests that the engine has at once; further ones wait here. */
const inFlightMax = 256;
/** One segment each: the memory of these requests is ours, and whole. */
const segmentsMax = 1;

export interface EngineRequest {
  readonly op: BlockOp;
  /** BlockFlag bits. */
  readonly flags?: number;
  /** Bytes, in the node's alignment and inside of it. */
  readonly offset: number;
  readonly length: number;
  /** The payload of a read or write, or room for a status: host memory that stays until the request has ended. */
  readonly address?: number;
  /** Bytes of that memory; as long as the range when absent. */
  readonly addressBytes?: number;
}

interface Started {
  readonly request: EngineRequest;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

const opNames: Record<BlockOp, string> = {
  [BlockOp.READ]: 'read',
  [BlockOp.WRITE]: 'write',
  [BlockOp.FLUSH]: 'flush',
  [BlockOp.DISCARD]: 'discard',
  [BlockOp.WRITE_ZEROES]: 'write zeroes',
  [BlockOp.STATUS]: 'block status',
};

export class EngineClient implements BlockCompletionSink {
  readonly node: BlockNode;
  readonly #table = new RequestTable(inFlightMax, segmentsMax);
  readonly #pool = new AlignedPool();
  readonly #reactor: Reactor;
  #engine: BlockEngine;
  readonly #started: (Started | undefined)[] = [];
  readonly #waiting: Started[] = [];
  /** Told when the engine has nothing in flight. */
  readonly #idleListeners = new Set<() => void>();
  /** Nothing is started: what is below changes. */
  #isHeld = false;
  #isClosing = false;
  #changes: Promise<void> = Promise.resolve();

  constructor(node: BlockNode) {
    this.node = node;
    this.#reactor = acquireEventLoopReactor();
    try {
      this.#engine = this.#createEngine();
    } catch (error) {
      this.#release();
      throw error;
    }
  }

  get inFlight(): number {
    return this.#table.inFlight + this.#waiting.length;
  }

  /** Rejects with a SystemCallError. The caller has checked range, alignment and read-only. */
  request(request: EngineRequest): Promise<void> {
    if (this.#isClosing) {
      return Promise.reject(
        new VduseError('ABORTED', `block node '${this.node.nodeName}' is not used from here any more`),
      );
    }
    return new Promise((resolve, reject) => {
      const started = { request, resolve, reject };
      if (this.#table.inFlight === inFlightMax || this.#isHeld) {
        this.#waiting.push(started);
      } else {
        this.#start(started);
        this.#reactor.wake();
      }
    });
  }

  /**
   * Lets what is in flight end, runs `change`, and goes on with the engine that the node has then. Throws TIMEOUT when
   * that takes longer: then nothing was changed.
   */
  drained(change: () => Promise<void>, timeoutMs: number = limits.drainMsMax): Promise<void> {
    const done = this.#changes.then(() => this.#drainedFor(change, timeoutMs));
    this.#changes = done.catch(() => undefined);
    return done;
  }

  /**
   * Ends when nothing is in flight; what lasts longer than `timeoutMs` is cancelled and gets as long again. Throws
   * TIMEOUT when even that did not end it: then the node, and the memory of its requests, must stay.
   */
  async close(timeoutMs: number): Promise<void> {
    this.#isClosing = true;
    if (!(await this.#drained(timeoutMs))) {
      this.#engine.cancel();
      this.#reactor.wake();
      if (!(await this.#drained(timeoutMs))) {
        this.#engine.abandon();
        throw new VduseError(
          'TIMEOUT',
          `block node '${this.node.nodeName}': ${this.inFlight} requests did not end in ${2 * timeoutMs} ms`,
        );
      }
    }
    this.#engine.close();
    this.#release();
  }

  onBlockComplete(slot: number, result: number): void {
    const { request, resolve, reject } = this.#started[slot]!;
    this.#started[slot] = undefined;
    this.#table.release(slot);
    if (result === 0) {
      resolve();
    } else {
      reject(systemCallError(opNames[request.op], -result, `on block node '${this.node.nodeName}'`));
    }
    const next = this.#isHeld ? undefined : this.#waiting.shift();
    if (next !== undefined) {
      this.#start(next);
      this.#reactor.wake();
    } else if (this.#table.inFlight === 0) {
      for (const listener of this.#idleListeners) {
        listener();
      }
    }
  }

  #createEngine(): BlockEngine {
    return createEngine(this.node.engine, {
      table: this.#table,
      sink: this,
      reactor: this.#reactor,
      pool: this.#pool,
    });
  }

  async #drainedFor(change: () => Promise<void>, timeoutMs: number): Promise<void> {
    this.#isHeld = true;
    this.#engine.expedite?.();
    const isIdle = await this.#within(this.#idle(), timeoutMs);
    try {
      if (!isIdle) {
        throw new VduseError(
          'TIMEOUT',
          `requests on block node '${this.node.nodeName}' did not end in ${timeoutMs / 1000} s: nothing below them was changed`,
          { hint: 'Its storage does not answer. Try again when it does.' },
        );
      }
      await change();
    } finally {
      if (isIdle) {
        const old = this.#engine;
        this.#engine = this.#createEngine();
        old.close();
      }
      this.#isHeld = false;
      this.#startWaiting();
    }
  }

  /** Until the engine has nothing in flight. */
  async #idle(): Promise<void> {
    while (this.#table.inFlight > 0) {
      await new Promise<void>((report) => {
        const listener = (): void => {
          this.#idleListeners.delete(listener);
          report();
        };
        this.#idleListeners.add(listener);
      });
    }
  }

  #startWaiting(): void {
    while (this.#table.inFlight < inFlightMax && this.#waiting.length > 0) {
      this.#start(this.#waiting.shift()!);
    }
    this.#reactor.wake();
  }

  #start(started: Started): void {
    const { op, flags = 0, offset, length, address, addressBytes = length } = started.request;
    const table = this.#table;
    const slot = table.take();
    this.#started[slot] = started;
    table.op[slot] = op;
    table.flags[slot] = flags;
    if (address !== undefined) {
      table.addSegment(slot, address, addressBytes);
    }
    table.length[slot] = length;
    table.offset[slot] = offset;
    detectZeroWrite(table, slot, this.node.detectZeroes);
    this.#engine.submit(slot);
  }

  /** Whether all requests end in time, also those that wait for a change. */
  #drained(timeoutMs: number): Promise<boolean> {
    const ended = async (): Promise<void> => {
      while (this.inFlight > 0 || this.#isHeld) {
        await this.#changes;
        await this.#idle();
      }
    };
    return this.#within(ended(), timeoutMs);
  }

  async #within(event: Promise<void>, timeoutMs: number): Promise<boolean> {
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<boolean>((report) => {
      timer = setTimeout(() => report(false), timeoutMs);
    });
    const result = await Promise.race([event.then(() => true), over]);
    clearTimeout(timer);
    return result;
  }

  #release(): void {
    this.#table.close();
    this.#pool.close();
    releaseEventLoopReactor();
  }
}
