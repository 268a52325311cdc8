// Hot file: synchronous, no allocation per request, no throw.
/**
 * What a backup job puts around a disk's engine: what would change a part that is not copied yet waits until the main
 * thread has copied it, so that the copy is of the moment at which the job began.
 */

import { Errno } from '../../native/errno.js';
import type { EventSource } from '../../reactor/reactor.js';
import { Reactor } from '../../reactor/reactor.js';
import { CopyChannel } from '../copy-channel.js';
import { DirtyBitmap } from '../dirty-bitmap.js';
import { type BackupEngineSpec, type BlockCompletionSink, type BlockEngine, isChange } from '../engine.js';
import type { RequestTable } from '../request-table.js';

const doneToken = 0;
const ignoredToken = 1;

/** What a slot waits for. */
const Wait = { NOTHING: 0, COPY: 1, PLACE: 2 } as const;

export class BackupEngine implements BlockEngine, EventSource {
  /** Set: a part is still to be copied, or is being copied. */
  readonly #bitmap: DirtyBitmap;
  readonly #channel: CopyChannel;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #reactor: Reactor;
  readonly #child: BlockEngine;
  readonly #source: number;
  readonly #waiting: Uint8Array;
  #waitingCount = 0;

  constructor(
    spec: BackupEngineSpec,
    context: { table: RequestTable; sink: BlockCompletionSink; reactor: Reactor },
    child: BlockEngine,
  ) {
    this.#bitmap = new DirtyBitmap(spec.bitmap);
    this.#channel = new CopyChannel(spec.channel);
    this.#table = context.table;
    this.#sink = context.sink;
    this.#reactor = context.reactor;
    this.#child = child;
    this.#waiting = new Uint8Array(context.table.capacity);
    this.#source = context.reactor.add(this);
    this.#reactor.armPoll(spec.channel.doneFd, this.#source, doneToken);
  }

  submit(slot: number): void {
    if (!isChange(this.#table.op[slot]) || !this.#mustWait(slot)) {
      this.#child.submit(slot);
      return;
    }
    this.#waitingCount++;
    this.#ask(slot);
  }

  expedite(): void {
    this.#child.expedite?.();
  }

  /** What waits was not begun. */
  cancel(): void {
    for (let slot = 0; slot < this.#waiting.length && this.#waitingCount > 0; slot++) {
      if (this.#waiting[slot] !== Wait.NOTHING) {
        this.#forget(slot);
        this.#sink.onBlockComplete(slot, -Errno.ECANCELED);
      }
    }
    this.#child.cancel();
  }

  abandon(): void {
    this.#child.abandon();
  }

  close(): void {
    this.#reactor.ring.prepareCancel({ source: this.#source, token: doneToken }, this.#source, ignoredToken);
    // At once: nothing watches the eventfd any more when the job closes it.
    this.#reactor.ring.submit();
    this.#reactor.remove(this.#source);
    this.#child.close();
  }

  // The queue drives the engine; as a source it only hears of copies.
  poll(): number {
    return 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    return false;
  }

  onCompletion(token: number, _result: number, flags: number): void {
    if (token !== doneToken) {
      return;
    }
    if (!Reactor.isArmed(flags)) {
      this.#reactor.armPoll(this.#channel.spec.doneFd, this.#source, doneToken);
    }
    for (let slot = 0; slot < this.#waiting.length && this.#waitingCount > 0; slot++) {
      if (this.#waiting[slot] === Wait.NOTHING) {
        continue;
      }
      if (!this.#mustWait(slot)) {
        this.#forget(slot);
        this.#child.submit(slot);
      } else if (this.#waiting[slot] === Wait.PLACE) {
        this.#ask(slot);
      }
    }
  }

  /** A part once copied stays copied, so a look that finds nothing is good for ever. */
  #mustWait(slot: number): boolean {
    return (
      !this.#channel.isClosed && this.#bitmap.isPending(this.#table.offset[slot], this.#table.length[slot])
    );
  }

  #ask(slot: number): void {
    const { granularity } = this.#bitmap;
    const first = Math.floor(this.#table.offset[slot] / granularity);
    const end = Math.ceil((this.#table.offset[slot] + this.#table.length[slot]) / granularity);
    this.#waiting[slot] = this.#channel.ask(first, end - first) ? Wait.COPY : Wait.PLACE;
  }

  #forget(slot: number): void {
    this.#waiting[slot] = Wait.NOTHING;
    this.#waitingCount--;
  }
}
