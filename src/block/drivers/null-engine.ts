// Hot file: synchronous, no allocation per request, no throw.
/** QEMU's null-co: writes vanish, reads leave the buffer as it is or fill it with zeroes. For measurements. */
import { fillZeroes } from '../../native/memory.js';
import { type BlockCompletionSink, type BlockEngine, BlockOp, type NullEngineSpec } from '../engine.js';
import type { RequestTable } from '../request-table.js';

export class NullEngine implements BlockEngine {
  readonly #spec: NullEngineSpec;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;

  constructor(spec: NullEngineSpec, table: RequestTable, sink: BlockCompletionSink) {
    this.#spec = spec;
    this.#table = table;
    this.#sink = sink;
  }

  submit(slot: number): void {
    const table = this.#table;
    if (this.#spec.readZeroes && table.op[slot] === BlockOp.READ) {
      for (let n = 0; n < table.segmentCount[slot]; n++) {
        fillZeroes(table.segmentAddress(slot, n), table.segmentLength(slot, n));
      }
    }
    this.#sink.onBlockComplete(slot, 0);
  }

  cancel(): void {}

  abandon(): void {}

  close(): void {}
}
