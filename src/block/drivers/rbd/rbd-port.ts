// Hot file: synchronous, no allocation per request, no throw after construction.
/**
 * Where a thread hears of an image's completions: it watches the image's eventfd, empties librbd's list, and gives
 * each completion to its engine, on this thread or on another. Every thread that has engines of the image watches;
 * whichever is awake first serves all.
 */
import { addressOf } from '../../../native/ffi.js';
import { loadLibrbd } from '../../../native/librbd.js';
import { type EventSource, Reactor } from '../../../reactor/reactor.js';
import type { RbdEngineSpec } from '../../engine.js';
import { RbdShared } from './rbd-shared.js';

/** What the port needs of an engine. */
export interface RbdCompletionTarget {
  readonly slots: number;
  /** librbd has the result of the slot's operation. */
  onEvent(slot: number): void;
}

const two32 = 0x1_0000_0000;
const batchMax = 64;
/** A completion's argument: the engine's number and the slot, the slot in the low half. */
const slotsPerEngine = 65_536;
/** Tokens of the ring entries: the image's eventfd, cancellations, then an engine's eventfd each. */
const tokenImage = 0;
const tokenIgnored = 1;
const tokenEngines = 2;

export function completionArgument(engine: number, slot: number): number {
  return engine * slotsPerEngine + slot;
}

/** The ports of a thread, by reactor and image. */
const ports = new WeakMap<Reactor, Map<number, RbdPort>>();

/** The thread's port of the image; `RbdPort.attach` and `detach` count its users. */
export function portOf(spec: RbdEngineSpec, reactor: Reactor): RbdPort {
  const known = ports.get(reactor) ?? new Map<number, RbdPort>();
  ports.set(reactor, known);
  const port = known.get(spec.image) ?? new RbdPort(spec, reactor, () => known.delete(spec.image));
  known.set(spec.image, port);
  return port;
}

class RbdPort implements EventSource {
  readonly shared: RbdShared;
  readonly #library = loadLibrbd();
  readonly #reactor: Reactor;
  readonly #image: number;
  readonly #notifyFd: number;
  readonly #source: number;
  readonly #onUnused: () => void;
  /** This thread's engines by their number. */
  readonly #engines: (RbdCompletionTarget | undefined)[] = [];
  #engineCount = 0;
  readonly #events = new Uint32Array(new ArrayBuffer(batchMax * 8));
  readonly #eventsAddress = addressOf(this.#events);
  /** librbd's list was not empty when the last turn left it. */
  #more = false;

  constructor(spec: RbdEngineSpec, reactor: Reactor, onUnused: () => void) {
    this.shared = new RbdShared(spec.shared);
    this.#reactor = reactor;
    this.#image = spec.image;
    this.#notifyFd = spec.notifyFd;
    this.#onUnused = onUnused;
    this.#source = reactor.add(this);
    reactor.armPoll(spec.notifyFd, this.#source, tokenImage);
  }

  /** Returns the engine's number. */
  attach(engine: RbdCompletionTarget): number {
    const number = this.shared.claim(engine.slots);
    this.#engines[number] = engine;
    this.#engineCount++;
    this.#reactor.armPoll(this.shared.eventFd(number), this.#source, tokenEngines + number);
    return number;
  }

  /** Nothing of the engine's is in flight. */
  detach(number: number): void {
    this.#engines[number] = undefined;
    this.#cancel(tokenEngines + number);
    this.shared.release(number);
    if (--this.#engineCount === 0) {
      this.#cancel(tokenImage);
      this.#reactor.remove(this.#source);
      this.#onUnused();
    }
  }

  poll(): number {
    return this.#more ? this.#takeEvents() : 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    return this.#more;
  }

  onCompletion(token: number, _result: number, flags: number): void {
    if (token === tokenIgnored) {
      return;
    }
    const engine = token - tokenEngines;
    const isEngine = token !== tokenImage;
    if (!Reactor.isArmed(flags) && (!isEngine || this.#engines[engine] !== undefined)) {
      const fd = isEngine ? this.shared.eventFd(engine) : this.#notifyFd;
      this.#reactor.armPoll(fd, this.#source, token);
    }
    if (isEngine) {
      this.#takeHandedOver(engine);
    } else {
      this.#takeEvents();
    }
  }

  /** Takes a batch of librbd's list; `poll` goes on where it may have more. */
  #takeEvents(): number {
    const count = this.#library.pollEvents(this.#image, this.#eventsAddress, batchMax);
    this.#more = count === batchMax;
    for (let n = 0; n < count; n++) {
      const completion = this.#events[2 * n] + this.#events[2 * n + 1] * two32;
      const argument = this.#library.argument(completion);
      const slot = argument % slotsPerEngine;
      const number = (argument - slot) / slotsPerEngine;
      const engine = this.#engines[number];
      if (engine === undefined) {
        this.shared.handOver(number, slot);
      } else {
        engine.onEvent(slot);
      }
    }
    return count;
  }

  #takeHandedOver(number: number): void {
    const engine = this.#engines[number];
    const groups = engine === undefined ? 0 : Math.ceil(engine.slots / 32);
    // An engine may end with its last completion, and its number be another thread's from then on.
    for (let group = 0; group < groups && this.#engines[number] === engine; group++) {
      let bits = this.shared.takeHandedOver(number, group);
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits);
        bits &= ~(1 << bit);
        engine?.onEvent(group * 32 + bit);
      }
    }
  }

  #cancel(token: number): void {
    this.#reactor.ring.prepareCancel({ source: this.#source, token }, this.#source, tokenIgnored);
  }
}
