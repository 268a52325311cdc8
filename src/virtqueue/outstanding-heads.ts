/**
 * Which requests of a split virtqueue are still to be answered, for a device whose process died without a
 * record of them. The indices tell how many; which ones is not in the ring, because requests end out of order.
 *
 * Linux's driver gives more away: it keeps its free descriptors on a stack. A head that is made available is the
 * one on top, that is, the one that the driver took back last. So the two rings, which still have the last
 * `size` heads each, have one order only (rarely a few) in which they can have come to be, and replaying them
 * in that order ends with the heads that are out. Each replay is checked by what the driver leaves in a
 * descriptor's `next`: the head that was below it on the stack. Requests must take one descriptor each, as they
 * do with indirect tables.
 *
 * Where most requests that are out have been so for longer than the rings remember, it can't be told.
 */

export interface RingHistory {
  /** Elements of the queue. */
  readonly size: number;
  /** The heads that the driver made available, the oldest first, as far back as the ring has them. */
  readonly made: readonly number[];
  /** The heads that the device has used, likewise. */
  readonly used: readonly number[];
  /** How many are out: the difference of the two indices. */
  readonly outstanding: number;
  /** Whether the driver ever filled the descriptor. */
  readonly wasFilled: (head: number) => boolean;
  /**
   * The descriptor's `next`, of which the specification says nothing where its flags have no NEXT; undefined
   * for a driver that does not set it.
   */
  readonly next: ((head: number) => number) | undefined;
}

/** Steps of all replays before giving up, and of those from one beginning, by the queue's size. */
const STEPS_MAX = 8_000_000;
const BEGINNING_STEPS_MAX = 32;

const UNKNOWN = 0;
const FREE = 1;
const OUT = 2;

/** A replay in progress. */
interface Replay {
  /** What is known of each head. */
  readonly state: Uint8Array;
  /** Heads that were taken back and not made available again: the top of the driver's stack. */
  readonly free: number[];
  /** The next element of `made` and of `used`. */
  made: number;
  used: number;
  /** What the driver's stack has below `free`, where that is known. */
  below: number | undefined;
  /** Heads that were out before the first element of `made`, of which the end has not been seen. */
  unseen: number;
}

/** Undefined where the rings can't have come to be so, or where it can't be told. */
export function outstandingHeads(history: RingHistory): number[] | undefined {
  const { made, used } = history;
  let steps = STEPS_MAX;
  // The two histories do not begin at the same time: of one of them, some elements come before the other begins.
  // Of that other one few do, those that came in one go with the last of these.
  for (let few = 0; few <= Math.min(made.length, used.length); few++) {
    for (let many = few; many <= Math.max(made.length, used.length); many++) {
      for (const skipped of [
        { made: few, used: many },
        { made: many, used: few },
      ]) {
        const budget = { steps: Math.min(steps, BEGINNING_STEPS_MAX * history.size) };
        steps -= budget.steps;
        const found = replayFrom(history, budget, skipped);
        steps += Math.max(0, budget.steps);
        if (found !== undefined || steps <= 0) {
          return found;
        }
      }
    }
  }
  return undefined;
}

/** Replays without the first elements of each history. */
function replayFrom(
  history: RingHistory,
  budget: { steps: number },
  skipped: { made: number; used: number },
): number[] | undefined {
  const { made, used, outstanding, size } = history;
  // As many were out when the replay begins: what is out now, less what came since, and what went.
  const unseen = outstanding - (made.length - skipped.made) + (used.length - skipped.used);
  if (skipped.made > made.length || skipped.used > used.length || unseen < 0 || unseen > size) {
    return undefined;
  }
  const beginning = { state: new Uint8Array(size), free: [], below: undefined, ...skipped, unseen };
  return replay(history, budget, beginning);
}

function replay(history: RingHistory, budget: { steps: number }, now: Replay): number[] | undefined {
  const { made, used } = history;
  for (; now.made < made.length; now.made++) {
    const head = made[now.made];
    if (budget.steps-- <= 0 || (now.state[head] === FREE && now.free.at(-1) !== head)) {
      return undefined;
    }
    if (now.state[head] !== FREE) {
      const next = used.indexOf(head, now.used);
      if (now.state[head] === UNKNOWN && now.free.length === 0) {
        // It was free from the beginning, or else its end is yet to come.
        const certain = now.below === head;
        const found = next === -1 || certain ? undefined : replayTaking(history, budget, now, next);
        if (found !== undefined || (now.below !== undefined && !certain)) {
          return found;
        }
        now.free.push(head);
        now.below = undefined;
      } else if (next === -1 || !takeBack(history, now, next)) {
        return undefined;
      }
    }
    if (!makeAvailable(history, now, head)) {
      return undefined;
    }
  }
  return takeBack(history, now, used.length - 1) ? remaining(history, now) : undefined;
}

/** The driver takes the head from its stack. False: what it wrote then says that it had another stack. */
function makeAvailable(history: RingHistory, now: Replay, head: number): boolean {
  now.free.pop();
  now.state[head] = OUT;
  if (history.next === undefined || history.made.indexOf(head, now.made + 1) !== -1) {
    // It was made available once more; what was written now is lost.
    return true;
  }
  const below = history.next(head);
  if (now.free.length > 0) {
    return now.free.at(-1) === below;
  }
  now.below ??= below;
  return now.below === below;
}

/** Goes on with a copy in which the driver takes back what was used up to `last`, its head being made available now. */
function replayTaking(
  history: RingHistory,
  budget: { steps: number },
  now: Replay,
  last: number,
): number[] | undefined {
  const copy = { ...now, state: now.state.slice(), free: [...now.free] };
  budget.steps -= last - now.used;
  return takeBack(history, copy, last) ? replay(history, budget, copy) : undefined;
}

/** The driver takes back the heads in `used` up to `last`. False: one of them was not out. */
function takeBack(history: RingHistory, now: Replay, last: number): boolean {
  for (; now.used <= last; now.used++) {
    const head = history.used[now.used];
    const wasFree = now.state[head] === FREE || head === now.below;
    if (wasFree || (now.state[head] === UNKNOWN && now.unseen-- === 0)) {
      return false;
    }
    now.state[head] = FREE;
    now.free.push(head);
  }
  return true;
}

/** The heads that are out after the replay, with those that were so all the time. */
function remaining(history: RingHistory, now: Replay): number[] | undefined {
  const heads: number[] = [];
  const silent: number[] = [];
  for (let head = 0; head < history.size; head++) {
    if (now.state[head] === OUT) {
      heads.push(head);
    } else if (now.state[head] === UNKNOWN && history.wasFilled(head)) {
      silent.push(head);
    }
  }
  const missing = history.outstanding - heads.length;
  if (missing === 0) {
    return heads;
  }
  return missing === silent.length ? [...heads, ...silent] : undefined;
}
