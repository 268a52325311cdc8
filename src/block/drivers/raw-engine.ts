// Hot file: synchronous, no allocation, no throw.
/** A part of a disk: requests move on by an offset. They complete straight from the engine below. */
import {
  type BlockCompletionSink,
  type BlockEngine,
  BlockFlag,
  BlockOp,
  type RawEngineSpec,
} from '../engine.js';
import type { RequestTable } from '../request-table.js';

export class RawEngine implements BlockEngine {
  readonly #offset: number;
  readonly #ignoreDiscard: boolean;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #child: BlockEngine;

  constructor(spec: RawEngineSpec, table: RequestTable, sink: BlockCompletionSink, child: BlockEngine) {
    this.#offset = spec.offset;
    this.#ignoreDiscard = spec.ignoreDiscard;
    this.#table = table;
    this.#sink = sink;
    this.#child = child;
  }

  submit(slot: number): void {
    const table = this.#table;
    if (this.#ignoreDiscard) {
      if (table.op[slot] === BlockOp.DISCARD) {
        this.#sink.onBlockComplete(slot, 0);
        return;
      }
      table.flags[slot] &= ~BlockFlag.MAY_UNMAP;
    }
    table.offset[slot] += this.#offset;
    this.#child.submit(slot);
  }

  expedite(): void {
    this.#child.expedite?.();
  }

  cancel(): void {
    this.#child.cancel();
  }

  abandon(): void {
    this.#child.abandon();
  }

  close(): void {
    this.#child.close();
  }
}
