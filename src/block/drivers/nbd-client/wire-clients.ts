// Hot file: synchronous, no allocation per request, no throw.
/**
 * The engines that use one connection, and which of their requests are on the wire. A request's number has its
 * engine's in the upper half and its slot in the lower one.
 */
import { Command } from '../../../base/nbd-protocol.js';
import { type WireRequests, WireState } from './wire-requests.js';

export interface WireClient {
  readonly requests: WireRequests;
  /** `result` is 0 or a negative errno. May submit, cancel, or close the client. */
  onWireComplete(slot: number, result: number): void;
}

export class WireClients {
  /** Requests that the server has seen something of, and the reads among them. */
  onWire = 0;
  reads = 0;
  /** Replies that ended, ever. */
  completed = 0;
  /** The request that was sent last. */
  newest = 0;
  readonly #clients: (WireClient | undefined)[] = [];
  #count = 0;
  #slots = 0;

  get count(): number {
    return this.#count;
  }

  /** Slots of all clients: no more requests than these are there at once. */
  get slots(): number {
    return this.#slots;
  }

  /** Returns the client's number. */
  add(client: WireClient): number {
    const free = this.#clients.indexOf(undefined);
    const index = free < 0 ? this.#clients.length : free;
    this.#clients[index] = client;
    this.#count++;
    this.#slots += client.requests.capacity;
    return index;
  }

  remove(index: number): void {
    this.#slots -= this.#clients[index]?.requests.capacity ?? 0;
    this.#count--;
    this.#clients[index] = undefined;
  }

  requests(id: number): WireRequests {
    return this.#clients[id >>> 16]!.requests;
  }

  /** The requests of which a reply's cookie names one that waits for it; undefined: nobody waits for that. */
  find(sequence: number, id: number): WireRequests | undefined {
    const index = id >>> 16;
    const slot = id & 0xffff;
    const requests = index < this.#clients.length ? this.#clients[index]?.requests : undefined;
    if (requests === undefined || slot >= requests.capacity) {
      return undefined;
    }
    const waits = requests.state[slot] === WireState.SENT && requests.sequence[slot] === sequence;
    return waits ? requests : undefined;
  }

  /** The first byte of a request goes. */
  onSending(id: number): void {
    const requests = this.requests(id);
    const slot = id & 0xffff;
    requests.state[slot] = WireState.SENDING;
    this.onWire++;
    this.newest = id;
    if (requests.command[slot] === Command.READ) {
      this.reads++;
    }
  }

  /** A reply is whole. */
  complete(id: number, result: number): void {
    const requests = this.requests(id);
    const slot = id & 0xffff;
    this.onWire--;
    this.completed++;
    if (requests.command[slot] === Command.READ) {
      this.reads--;
    }
    this.end(id, result);
  }

  /** Ends a request that is not on the wire. */
  end(id: number, result: number): void {
    const client = this.#clients[id >>> 16]!;
    client.requests.state[id & 0xffff] = WireState.IDLE;
    client.onWireComplete(id & 0xffff, result);
  }

  /** The connection is gone: whatever was not answered waits for another one. */
  holdAll(): void {
    this.onWire = 0;
    this.reads = 0;
    for (let index = 0; index < this.#clients.length; index++) {
      const requests = this.#clients[index]?.requests;
      for (let slot = 0; requests !== undefined && slot < requests.capacity; slot++) {
        if (requests.state[slot] !== WireState.IDLE) {
          requests.state[slot] = WireState.HELD;
          requests.restart(slot);
        }
      }
    }
  }

  /** Calls back for each request that waits for a connection; the callback may end it. */
  eachHeld(callback: (id: number) => void): void {
    for (let index = 0; index < this.#clients.length; index++) {
      const requests = this.#clients[index]?.requests;
      for (let slot = 0; requests !== undefined && slot < requests.capacity; slot++) {
        // Looked up again: a callback may have taken the client away.
        if (this.#clients[index]?.requests === requests && requests.state[slot] === WireState.HELD) {
          callback(((index << 16) | slot) >>> 0);
        }
      }
    }
  }
}
