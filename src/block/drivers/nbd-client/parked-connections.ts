/**
 * Connections of a node that no engine uses now, in memory that all threads see: an engine that ends leaves its
 * connection to the next, so that a device's reset is none for the server. Whoever takes a descriptor out owns it.
 */
import { closeSocket } from '../../../native/stream-socket.js';

export interface ParkedConnection {
  readonly fd: number;
  readonly structuredReplies: boolean;
}

/** More engines than this that end at once close the rest. */
const slotCount = 64;
const empty = -1;
/** The word behind the slots: 1 while somebody has the only connection that there may be. */
const claimWord = slotCount;

export class ParkedConnections {
  readonly buffer: SharedArrayBuffer;
  readonly #slots: Int32Array;

  constructor(buffer?: SharedArrayBuffer) {
    this.buffer = buffer ?? new SharedArrayBuffer((slotCount + 1) * 4);
    this.#slots = new Int32Array(this.buffer);
    if (buffer === undefined) {
      this.#slots.fill(empty, 0, slotCount);
    }
  }

  take(): ParkedConnection | undefined {
    for (let n = 0; n < slotCount; n++) {
      const value = Atomics.exchange(this.#slots, n, empty);
      if (value !== empty) {
        return { fd: value >> 1, structuredReplies: (value & 1) !== 0 };
      }
    }
    return undefined;
  }

  /** Takes over a connection on which nothing is under way; one that finds no room is closed. */
  park({ fd, structuredReplies }: ParkedConnection): void {
    const value = (fd << 1) | (structuredReplies ? 1 : 0);
    for (let n = 0; n < slotCount; n++) {
      if (Atomics.compareExchange(this.#slots, n, empty, value) === empty) {
        return;
      }
    }
    closeSocket(fd);
  }

  /** Claims to be the only one with a connection. False: somebody else is. */
  claim(): boolean {
    return Atomics.exchange(this.#slots, claimWord, 1) === 0;
  }

  unclaim(): void {
    Atomics.store(this.#slots, claimWord, 0);
  }
}
