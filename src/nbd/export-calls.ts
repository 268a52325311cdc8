// Hot: synchronous but for the export's own promises.
/** Requests as calls of the export, whose answers come back to them at once or when its promises settle. */
import { Command, CommandFlag } from '../base/nbd-protocol.js';
import type { Answer, NbdExport, NbdExtent, NbdPreparedWrite, NbdReadResult } from './nbd-export.js';
import { Request } from './request.js';

/** Who hears how the calls for its requests ended. */
export interface SlotOwner {
  onRead(slot: Slot, result: NbdReadResult): void;
  onExtents(slot: Slot, extents: readonly NbdExtent[]): void;
  onPrepared(slot: Slot, prepared: NbdPreparedWrite): void;
  onDone(slot: Slot): void;
  onFailed(slot: Slot, error: unknown): void;
}

/** A request under way. Its callbacks are made once, and it is used again: a request allocates no closures. */
export class Slot extends Request {
  /** A flush still has to follow, in place of FUA. */
  mustFlush = false;
  readonly onRead: (result: NbdReadResult) => void;
  readonly onExtents: (extents: readonly NbdExtent[]) => void;
  readonly onPrepared: (prepared: NbdPreparedWrite) => void;
  readonly onDone: () => void;
  readonly onFailed: (error: unknown) => void;

  constructor(owner: SlotOwner) {
    super();
    this.onRead = (result) => owner.onRead(this, result);
    this.onExtents = (extents) => owner.onExtents(this, extents);
    this.onPrepared = (prepared) => owner.onPrepared(this, prepared);
    this.onDone = () => owner.onDone(this);
    this.onFailed = (error) => owner.onFailed(this, error);
  }
}

const withFua = { fua: true } as const;
const withoutFua = { fua: false } as const;

/** Calls the export for a request that the check let pass. Of a write it asks for the memory only. */
export function callExport(target: NbdExport, slot: Slot): void {
  const { offset, length } = slot;
  const wantsFua = slot.has(CommandFlag.FUA);
  const fua = wantsFua && target.fua;
  const options = fua ? withFua : withoutFua;
  slot.mustFlush = false;
  switch (slot.command) {
    case Command.READ:
      settle(slot, () => target.read(offset, length), slot.onRead);
      break;
    case Command.WRITE:
      slot.mustFlush = wantsFua && !fua;
      settle(slot, () => target.prepareWrite!(offset, length, options), slot.onPrepared);
      break;
    case Command.FLUSH:
      callFlush(target, slot);
      break;
    case Command.TRIM:
      slot.mustFlush = wantsFua && !fua;
      settle(slot, () => target.trim!(offset, length, options), slot.onDone);
      break;
    case Command.CACHE:
      settle(slot, () => target.cache!(offset, length), slot.onDone);
      break;
    case Command.WRITE_ZEROES: {
      slot.mustFlush = wantsFua && !fua;
      const mayUnmap = !slot.has(CommandFlag.NO_HOLE);
      const fastZero = slot.has(CommandFlag.FAST_ZERO);
      settle(slot, () => target.writeZeroes!(offset, length, { fua, mayUnmap, fastZero }), slot.onDone);
      break;
    }
    case Command.BLOCK_STATUS:
      settle(slot, () => target.blockStatus?.(offset, length) ?? [], slot.onExtents);
      break;
    default:
      throw new Error(`request ${slot.command} passed the check`);
  }
}

export function callFlush(target: NbdExport, slot: Slot): void {
  settle(slot, () => target.flush!(), slot.onDone);
}

/** Writes what has come into the memory that the export gave. */
export function callSubmit(prepared: NbdPreparedWrite, slot: Slot): void {
  settle(slot, () => prepared.submit(), slot.onDone);
}

/** Goes on with the answer of a call: at once, or when its promise settles. */
function settle<T>(slot: Slot, call: () => Answer<T>, onAnswer: (value: T) => void): void {
  let answer: Answer<T>;
  try {
    answer = call();
  } catch (error) {
    slot.onFailed(error);
    return;
  }
  if (isPromise(answer)) {
    answer.then(onAnswer, slot.onFailed);
  } else {
    onAnswer(answer);
  }
}

function isPromise<T>(answer: Answer<T>): answer is PromiseLike<T> {
  return (
    typeof answer === 'object' && answer !== null && 'then' in answer && typeof answer.then === 'function'
  );
}
