// Hot file: synchronous, no allocation per request, no throw.
/**
 * What a mirror job puts around a disk's engine: it marks what was written, or, where that part has been copied
 * already, does the same on the target before the front-end learns of its end.
 */
import { DirtyBitmap } from '../dirty-bitmap.js';
import { type BlockCompletionSink, type BlockEngine, isChange, type MirrorEngineSpec } from '../engine.js';
import { RequestTable } from '../request-table.js';

type CreateEngine = (table: RequestTable, sink: BlockCompletionSink) => BlockEngine;

export class MirrorEngine implements BlockEngine, BlockCompletionSink {
  readonly #bitmap: DirtyBitmap;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #child: BlockEngine;
  readonly #target: TargetWrites | undefined;
  // What was asked: engines change a slot's offset and length while they work.
  readonly #offset: Float64Array;
  readonly #length: Float64Array;
  readonly #changes: Uint8Array;

  constructor(
    spec: MirrorEngineSpec,
    table: RequestTable,
    sink: BlockCompletionSink,
    engines: { readonly child: (sink: BlockCompletionSink) => BlockEngine; readonly target?: CreateEngine },
  ) {
    this.#bitmap = new DirtyBitmap(spec.bitmap);
    this.#table = table;
    this.#sink = sink;
    this.#offset = new Float64Array(table.capacity);
    this.#length = new Float64Array(table.capacity);
    this.#changes = new Uint8Array(table.capacity);
    this.#target =
      engines.target === undefined
        ? undefined
        : new TargetWrites(table, this.#bitmap, engines.target, (slot) =>
            this.#sink.onBlockComplete(slot, 0),
          );
    this.#child = engines.child(this);
  }

  submit(slot: number): void {
    this.#changes[slot] = isChange(this.#table.op[slot]) ? 1 : 0;
    if (this.#changes[slot] !== 0) {
      this.#offset[slot] = this.#table.offset[slot];
      this.#length[slot] = this.#table.length[slot];
      this.#target?.prepare(slot);
    }
    this.#child.submit(slot);
  }

  onBlockComplete(slot: number, result: number): void {
    if (this.#changes[slot] !== 0) {
      this.#changes[slot] = 0;
      if (result === 0 && this.#target?.submit(slot) === true) {
        return;
      }
      this.#target?.drop(slot);
      // Failed writes too: nobody knows what they left.
      this.#bitmap.mark(this.#offset[slot], this.#length[slot]);
    }
    this.#sink.onBlockComplete(slot, result);
  }

  expedite(): void {
    this.#child.expedite?.();
    this.#target?.engine.expedite?.();
  }

  cancel(): void {
    this.#child.cancel();
    this.#target?.engine.cancel();
  }

  abandon(): void {
    this.#child.abandon();
    this.#target?.engine.abandon();
  }

  close(): void {
    this.#child.close();
    this.#target?.close();
  }
}

const noSlot = 0xffff;

/** The same writes on the target, in a table of their own. */
class TargetWrites implements BlockCompletionSink {
  readonly engine: BlockEngine;
  readonly #source: RequestTable;
  readonly #table: RequestTable;
  readonly #bitmap: DirtyBitmap;
  readonly #onDone: (slot: number) => void;
  /** The target's slot of each of the source's that is to be written there, and the other way round. */
  readonly #own: Uint16Array;
  readonly #origin: Uint16Array;
  /** How often the part had been marked when the write came. */
  readonly #marks: Float64Array;
  readonly #offset: Float64Array;
  readonly #length: Float64Array;

  constructor(
    source: RequestTable,
    bitmap: DirtyBitmap,
    create: CreateEngine,
    onDone: (slot: number) => void,
  ) {
    const { capacity } = source;
    this.#source = source;
    this.#bitmap = bitmap;
    this.#onDone = onDone;
    this.#table = new RequestTable(capacity, source.segmentsMax);
    this.#own = new Uint16Array(capacity).fill(noSlot);
    this.#origin = new Uint16Array(capacity);
    this.#marks = new Float64Array(capacity);
    this.#offset = new Float64Array(capacity);
    this.#length = new Float64Array(capacity);
    try {
      this.engine = create(this.#table, this);
    } catch (error) {
      this.#table.close();
      throw error;
    }
  }

  /** Notes a write, unless its part is to be copied anyway. */
  prepare(slot: number): void {
    const source = this.#source;
    const offset = source.offset[slot];
    const length = source.length[slot];
    this.#own[slot] = noSlot;
    // Before the look: what is marked behind it shows in the count.
    const marks = this.#bitmap.markCount(offset, length);
    if (this.#bitmap.isPending(offset, length)) {
      return;
    }
    const table = this.#table;
    const own = table.take();
    this.#own[slot] = own;
    this.#origin[own] = slot;
    this.#marks[own] = marks;
    this.#offset[own] = offset;
    this.#length[own] = length;
    table.op[own] = source.op[slot];
    table.flags[own] = source.flags[slot];
    table.offset[own] = offset;
    for (let n = 0; n < source.segmentCount[slot]; n++) {
      table.addSegment(own, source.segmentAddress(slot, n), source.segmentLength(slot, n));
    }
    table.length[own] = length;
  }

  /** Starts the write that was noted. False: there is none. */
  submit(slot: number): boolean {
    const own = this.#own[slot];
    if (own === noSlot) {
      return false;
    }
    this.#own[slot] = noSlot;
    this.engine.submit(own);
    return true;
  }

  /** The write that was noted is not to be done. */
  drop(slot: number): void {
    if (this.#own[slot] !== noSlot) {
      this.#table.release(this.#own[slot]);
      this.#own[slot] = noSlot;
    }
  }

  onBlockComplete(own: number, result: number): void {
    const bitmap = this.#bitmap;
    const offset = this.#offset[own];
    const length = this.#length[own];
    // Marked meanwhile, its part is copied again, and that copy may have passed this write on its way.
    const marked = bitmap.markCount(offset, length) !== this.#marks[own];
    if (result !== 0 || marked || bitmap.isPending(offset, length)) {
      bitmap.mark(offset, length);
    }
    this.#table.release(own);
    this.#onDone(this.#origin[own]);
  }

  close(): void {
    this.engine.close();
    this.#table.close();
  }
}
