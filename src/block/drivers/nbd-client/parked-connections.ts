/**
 * Connections of a node that no engine uses now, in memory that all threads see: an engine that ends leaves its
 * connection to the next, so that a device's reset is none for the server. Whoever takes a descriptor out owns it.
 */
import { closeSocket } from '../../../native/stream-socket.js';

export interface ParkedConnection {
  readonly fd: number;
  readonly structuredReplies: boolean;
  /** The number of base:allocation on it; undefined: it has none. */
  readonly allocationContext: number | undefined;
}

/** More engines than this that end at once close the rest. */
const slotCount = 64;
const empty = -1n;
/** The word behind the slots: 1 while somebody has the only connection that there may be. */
const claimWord = slotCount;
// A connection in one word, which is exchanged as a whole: the context's number, two bits, and the descriptor.
const structuredBit = 1n << 32n;
const contextBit = 1n << 33n;
const fdShift = 34n;

export class ParkedConnections {
  readonly buffer: SharedArrayBuffer;
  readonly #slots: BigInt64Array;

  constructor(buffer?: SharedArrayBuffer) {
    this.buffer = buffer ?? new SharedArrayBuffer((slotCount + 1) * 8);
    this.#slots = new BigInt64Array(this.buffer);
    if (buffer === undefined) {
      this.#slots.fill(empty, 0, slotCount);
    }
  }

  take(): ParkedConnection | undefined {
    for (let n = 0; n < slotCount; n++) {
      const word = Atomics.exchange(this.#slots, n, empty);
      if (word !== empty) {
        return decode(word);
      }
    }
    return undefined;
  }

  /** Takes over a connection on which nothing is under way; one that finds no room is closed. */
  park(connection: ParkedConnection): void {
    const word = encode(connection);
    for (let n = 0; n < slotCount; n++) {
      if (Atomics.compareExchange(this.#slots, n, empty, word) === empty) {
        return;
      }
    }
    closeSocket(connection.fd);
  }

  /** Claims to be the only one with a connection. False: somebody else is. */
  claim(): boolean {
    return Atomics.exchange(this.#slots, claimWord, 1n) === 0n;
  }

  unclaim(): void {
    Atomics.store(this.#slots, claimWord, 0n);
  }
}

function encode({ fd, structuredReplies, allocationContext }: ParkedConnection): bigint {
  const context = allocationContext === undefined ? 0n : contextBit | BigInt(allocationContext);
  return (BigInt(fd) << fdShift) | (structuredReplies ? structuredBit : 0n) | context;
}

function decode(word: bigint): ParkedConnection {
  return {
    fd: Number(word >> fdShift),
    structuredReplies: (word & structuredBit) !== 0n,
    allocationContext: (word & contextBit) === 0n ? undefined : Number(BigInt.asUintN(32, word)),
  };
}
