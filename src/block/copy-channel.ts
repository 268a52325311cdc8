// Hot file: synchronous, no allocation after construction, no throw.
/**
 * How queue threads ask the main thread to copy parts of a disk before they are overwritten, in memory that all
 * threads share. A place holds one question; the two eventfds wake whoever waits.
 */
import { drainEventFd, signalEventFd } from '../native/fd.js';

/** Questions at once; who finds no place asks again when a copy has ended. */
const places = 1024;
const fieldCount = 3;
const closedField = 0;
const header = 1;
/** States of a place. */
const Place = { FREE: 0, FILLING: 1, ASKED: 2 } as const;

export interface CopyChannelSpec {
  readonly buffer: SharedArrayBuffer;
  /** Eventfds: a question was asked; a copy that somebody asked for has ended. */
  readonly askFd: number;
  readonly doneFd: number;
}

export interface WantedParts {
  readonly first: number;
  readonly count: number;
}

export class CopyChannel {
  readonly spec: CopyChannelSpec;
  readonly #words: Int32Array;

  constructor(source: { readonly askFd: number; readonly doneFd: number } | CopyChannelSpec) {
    const buffer =
      'buffer' in source ? source.buffer : new SharedArrayBuffer((header + fieldCount * places) * 4);
    this.spec = { ...source, buffer };
    this.#words = new Int32Array(buffer);
  }

  /** Nobody waits for copies any more. */
  get isClosed(): boolean {
    return Atomics.load(this.#words, closedField) !== 0;
  }

  /** For whoever is to write: asks for a copy of so many parts. False: there is no place at the moment. */
  ask(first: number, count: number): boolean {
    const words = this.#words;
    for (let n = 0; n < places; n++) {
      const at = header + fieldCount * n;
      if (Atomics.compareExchange(words, at, Place.FREE, Place.FILLING) === Place.FREE) {
        words[at + 1] = first;
        words[at + 2] = count;
        // Pairs with the load in `take`: whoever sees ASKED sees the two numbers.
        Atomics.store(words, at, Place.ASKED);
        signalEventFd(this.spec.askFd);
        return true;
      }
    }
    return false;
  }

  /** For whoever copies: takes all that was asked. */
  take(): WantedParts[] {
    const words = this.#words;
    const wanted: WantedParts[] = [];
    drainEventFd(this.spec.askFd);
    for (let at = header; at < words.length; at += fieldCount) {
      if (Atomics.load(words, at) === Place.ASKED) {
        wanted.push({ first: words[at + 1], count: words[at + 2] });
        Atomics.store(words, at, Place.FREE);
      }
    }
    return wanted;
  }

  /** Whoever waits looks again. */
  signalDone(): void {
    signalEventFd(this.spec.doneFd);
  }

  /** Lets all go on that wait, and all to come. */
  close(): void {
    Atomics.store(this.#words, closedField, 1);
    this.signalDone();
  }
}
