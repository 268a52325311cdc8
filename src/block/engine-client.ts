// Hot: synchronous but for the promises that it gives.
/**
 * Requests on a block node from the main thread, without a queue: for NBD clients and whoever else works with
 * promises. The engine is the node's own, the one that queue threads build, and what is asked in one turn of the
 * event loop goes to the kernel together.
 */
import { VduseError } from '../base/errors.js';
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
  /** The payload of a read or write: host memory that stays until the request has ended. */
  readonly address?: number;
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
};

export class EngineClient implements BlockCompletionSink {
  readonly #node: BlockNode;
  readonly #table = new RequestTable(inFlightMax, segmentsMax);
  readonly #pool = new AlignedPool();
  readonly #reactor: Reactor;
  readonly #engine: BlockEngine;
  readonly #started: (Started | undefined)[] = [];
  readonly #waiting: Started[] = [];
  #onIdle: (() => void) | undefined;

  constructor(node: BlockNode) {
    this.#node = node;
    this.#reactor = acquireEventLoopReactor();
    try {
      this.#engine = createEngine(node.engine, {
        table: this.#table,
        sink: this,
        reactor: this.#reactor,
        pool: this.#pool,
      });
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
    return new Promise((resolve, reject) => {
      const started = { request, resolve, reject };
      if (this.#table.inFlight === inFlightMax) {
        this.#waiting.push(started);
      } else {
        this.#start(started);
        this.#reactor.wake();
      }
    });
  }

  /**
   * Ends when nothing is in flight; what lasts longer than `timeoutMs` is cancelled and gets as long again. Throws
   * TIMEOUT when even that did not end it: then the node, and the memory of its requests, must stay.
   */
  async close(timeoutMs: number): Promise<void> {
    if (!(await this.#drained(timeoutMs))) {
      this.#engine.cancel();
      this.#reactor.wake();
      if (!(await this.#drained(timeoutMs))) {
        this.#engine.abandon();
        throw new VduseError(
          'TIMEOUT',
          `block node '${this.#node.nodeName}': ${this.inFlight} requests did not end in ${2 * timeoutMs} ms`,
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
      reject(systemCallError(opNames[request.op], -result, `on block node '${this.#node.nodeName}'`));
    }
    const next = this.#waiting.shift();
    if (next !== undefined) {
      this.#start(next);
      this.#reactor.wake();
    } else if (this.#table.inFlight === 0) {
      this.#onIdle?.();
    }
  }

  #start(started: Started): void {
    const { op, flags = 0, offset, length, address } = started.request;
    const table = this.#table;
    const slot = table.take();
    this.#started[slot] = started;
    table.op[slot] = op;
    table.flags[slot] = flags;
    if (address === undefined) {
      table.length[slot] = length;
    } else {
      table.addSegment(slot, address, length);
    }
    table.offset[slot] = offset;
    detectZeroWrite(table, slot, this.#node.detectZeroes);
    this.#engine.submit(slot);
  }

  async #drained(timeoutMs: number): Promise<boolean> {
    if (this.inFlight === 0) {
      return true;
    }
    let timer: NodeJS.Timeout | undefined;
    const idle = await new Promise<boolean>((report) => {
      this.#onIdle = () => report(true);
      timer = setTimeout(() => report(false), timeoutMs);
    });
    clearTimeout(timer);
    this.#onIdle = undefined;
    return idle;
  }

  #release(): void {
    this.#table.close();
    this.#pool.close();
    releaseEventLoopReactor();
  }
}
