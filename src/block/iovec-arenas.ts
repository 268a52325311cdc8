/**
 * Memory for the struct iovecs of request tables. A thread keeps some of it from one table to the next: a view of it
 * counts as memory of its whole length, which calls the garbage collector, and a front-end that takes memory away
 * restarts all of its queues at once.
 */
import { viewMemory } from '../native/ffi.js';
import { mapAnonymous, unmap } from '../native/memory.js';

export interface IovecArena {
  readonly address: number;
  readonly bytes: number;
  readonly words: Uint32Array;
}

/** As many as a thread's queues may give back before they are started again. */
const spareMax = 16;
const spares: IovecArena[] = [];

/** Pages that are never touched cost nothing; what they hold is anything. */
export function takeArena(bytes: number): IovecArena {
  const at = spares.findIndex((spare) => spare.bytes === bytes);
  if (at >= 0) {
    return spares.splice(at, 1)[0];
  }
  const address = mapAnonymous(bytes);
  return { address, bytes, words: new Uint32Array(viewMemory(address, bytes)) };
}

/** Nothing is in flight that uses it. */
export function giveArenaBack(arena: IovecArena): void {
  if (spares.length < spareMax) {
    spares.push(arena);
  } else {
    unmap(arena.address, arena.bytes);
  }
}

/** Unmaps what the thread has kept. */
export function closeSpareArenas(): void {
  for (const { address, bytes } of spares.splice(0)) {
    unmap(address, bytes);
  }
}
