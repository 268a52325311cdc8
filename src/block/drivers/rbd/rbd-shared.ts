// Hot file: synchronous, no allocation per request, no throw.
/**
 * What all engines of one RBD image share, whatever threads they run on. librbd tells of completions through one
 * eventfd and one list for the whole image, so a thread may find the completion of another's request: it notes it
 * here, in the other engine's bitmap, and signals that engine's eventfd.
 */
import { VduseError } from '../../../base/errors.js';
import { limits } from '../../../base/limits.js';
import { closeFd, createEventFd, signalEventFd } from '../../../native/fd.js';
import { viewMemory } from '../../../native/ffi.js';
import { mapAnonymous, unmap } from '../../../native/memory.js';

/** Queues of all devices that use the image, and jobs. */
const enginesMax = 2048;
const headerBytes = 4096;
/** Two words, and a bit for each slot of the largest queue. */
const engineWords = 2048;
const engineBytes = engineWords * 4;
const sharedBytes = headerBytes + enginesMax * engineBytes;
const wordUsed = 0;
/** The eventfd plus one: 0 means that there is none yet. */
const wordEventFd = 1;
const bitmapWord = 2;

/** Maps the memory; pages of engines that never were cost nothing. */
export function createRbdShared(): number {
  return mapAnonymous(sharedBytes);
}

/** Every engine has been closed. */
export function closeRbdShared(address: number): void {
  const shared = new RbdShared(address);
  for (let engine = 0; engine < enginesMax; engine++) {
    const fd = shared.eventFd(engine);
    if (fd < 0) {
      break;
    }
    closeFd(fd);
  }
  unmap(address, sharedBytes);
}

export class RbdShared {
  readonly #size: Float64Array;
  readonly #words: Int32Array;

  constructor(address: number) {
    const memory = viewMemory(address, sharedBytes);
    this.#size = new Float64Array(memory, 0, 1);
    this.#words = new Int32Array(memory, headerBytes);
  }

  /** Bytes of the image. librbd cuts off what a write has beyond the end, and calls that success. */
  get imageBytes(): number {
    return this.#size[0];
  }

  set imageBytes(bytes: number) {
    this.#size[0] = bytes;
  }

  /** Takes a free place for an engine of so many slots. Throws NOT_SUPPORTED where there is none. */
  claim(slots: number): number {
    for (let engine = 0; engine < enginesMax && slots <= limits.queueSizeMax; engine++) {
      const word = engine * engineWords;
      if (Atomics.compareExchange(this.#words, word + wordUsed, 0, 1) === 0) {
        // Stays open until the image is closed: whoever signals late must not meet another file under its number.
        if (this.#words[word + wordEventFd] === 0) {
          this.#words[word + wordEventFd] = createEventFd() + 1;
        }
        return engine;
      }
    }
    throw new VduseError('NOT_SUPPORTED', `more than ${enginesMax} queues use one RBD image`);
  }

  /** Nothing of the engine's is in flight. */
  release(engine: number): void {
    Atomics.store(this.#words, engine * engineWords + wordUsed, 0);
  }

  /** Negative where the place was never taken. */
  eventFd(engine: number): number {
    return this.#words[engine * engineWords + wordEventFd] - 1;
  }

  /** Tells an engine on another thread that librbd has completed its slot. */
  handOver(engine: number, slot: number): void {
    const word = engine * engineWords + bitmapWord + (slot >>> 5);
    Atomics.or(this.#words, word, 1 << (slot & 31));
    signalEventFd(this.eventFd(engine));
  }

  /** Takes 32 slots' bits of what others have handed over. */
  takeHandedOver(engine: number, group: number): number {
    return Atomics.exchange(this.#words, engine * engineWords + bitmapWord + group, 0);
  }
}
