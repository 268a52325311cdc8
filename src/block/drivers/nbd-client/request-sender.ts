// Hot file: synchronous, no allocation per request, no throw.
/** Sends requests in the order they come: headers and guest memory of many of them in one system call. */
import { Errno } from '../../../native/errno.js';
import { IovecMessage } from '../../../native/stream-socket.js';
import type { WireClients } from './wire-clients.js';
import { WireState } from './wire-requests.js';

/** More than a socket takes at once would only be described again for the next call. */
const bytesPerCall = 1 << 20;
/** Calls in one go, for the sake of the other queues of the thread. */
const callsMax = 16;

export class RequestSender {
  readonly #clients: WireClients;
  readonly #message = new IovecMessage();
  /** Numbers of requests; head and tail count on, the mask makes places of them. */
  #ring = new Uint32Array(64);
  #mask = 63;
  #head = 0;
  #tail = 0;
  /** Bytes of the first request that have gone. */
  #done = 0;

  constructor(clients: WireClients) {
    this.#clients = clients;
  }

  get isEmpty(): boolean {
    return this.#head === this.#tail;
  }

  get isInMiddle(): boolean {
    return this.#done > 0;
  }

  /** Makes room for that many requests at once. */
  reserve(count: number): void {
    let size = this.#ring.length;
    while (size < count) {
      size *= 2;
    }
    if (size === this.#ring.length) {
      return;
    }
    const ring = new Uint32Array(size);
    for (let n = this.#head; n !== this.#tail; n = (n + 1) >>> 0) {
      ring[n & (size - 1)] = this.#ring[n & this.#mask];
    }
    this.#ring = ring;
    this.#mask = size - 1;
  }

  /** Takes a request, which goes with the next `send`. */
  add(id: number): void {
    const requests = this.#clients.requests(id);
    requests.encode(id & 0xffff, id);
    requests.state[id & 0xffff] = WireState.QUEUED;
    this.#ring[this.#tail & this.#mask] = id;
    this.#tail = (this.#tail + 1) >>> 0;
  }

  /** Takes back a client's requests, none of which has begun to go. */
  removeAll(client: number): void {
    let kept = this.#head;
    for (let n = this.#head; n !== this.#tail; n = (n + 1) >>> 0) {
      const id = this.#ring[n & this.#mask];
      if (id >>> 16 !== client) {
        this.#ring[kept & this.#mask] = id;
        kept = (kept + 1) >>> 0;
      }
    }
    this.#tail = kept;
  }

  /** Forgets everything: the connection is gone. */
  reset(): void {
    this.#head = this.#tail;
    this.#done = 0;
  }

  /** Returns 0 when all has gone or more can go at once, -EAGAIN when the socket is full, or what ended the connection. */
  send(fd: number): number {
    for (let calls = 0; calls < callsMax && this.#head !== this.#tail; calls++) {
      this.#fill();
      const sent = this.#message.send(fd);
      if (sent < 0) {
        return sent;
      }
      this.#consume(sent);
      if (sent < this.#message.bytes) {
        return -Errno.EAGAIN;
      }
    }
    return 0;
  }

  close(): void {
    this.#message.close();
  }

  #fill(): void {
    const message = this.#message;
    message.clear();
    let done = this.#done;
    for (let n = this.#head; n !== this.#tail; n = (n + 1) >>> 0) {
      const id = this.#ring[n & this.#mask];
      if (message.isFull || message.bytes >= bytesPerCall) {
        return;
      }
      if (!this.#clients.requests(id).addOutgoing(message, id & 0xffff, done)) {
        return;
      }
      done = 0;
    }
  }

  #consume(sent: number): void {
    let left = sent;
    while (left > 0) {
      const id = this.#ring[this.#head & this.#mask];
      const requests = this.#clients.requests(id);
      const slot = id & 0xffff;
      if (this.#done === 0) {
        this.#clients.onSending(id);
      }
      const rest = requests.wireBytes(slot) - this.#done;
      if (left < rest) {
        this.#done += left;
        return;
      }
      left -= rest;
      this.#done = 0;
      requests.state[slot] = WireState.SENT;
      this.#head = (this.#head + 1) >>> 0;
    }
  }
}
