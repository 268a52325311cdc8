// Hot: synchronous, and a small reply allocates next to nothing.
/**
 * What goes to one client, in order. Headers and small payloads are gathered in slabs, large payloads are sent from
 * where they lie; one write to the socket carries everything that is there, up to a bound. The next write waits for
 * the end of the last: replies that complete meanwhile gather, and a client that reads slowly is seen to read.
 */
import type { Socket } from 'node:net';
import { assert } from '../base/assert.js';

/** Up to this, copying a payload is cheaper than one more buffer in a write. Measured in docs/nbd.md. */
export const COPIED_PAYLOAD_MAX = 16 << 10;
const SLAB_BYTES = 256 << 10;
/** Slabs that one client keeps for later. */
const SPARE_SLABS_MAX = 2;
/** One write ends with the chunk that passes this, so that progress shows. */
const WRITE_BYTES = 1 << 20;
const WRITE_CHUNKS_MAX = 256;

/** Memory for headers and small payloads, filled from front to back and used again when all of it is sent. */
interface Slab {
  readonly bytes: Buffer;
  /** Chunks of it that are not sent. */
  chunks: number;
}

interface Chunk {
  readonly bytes: Uint8Array;
  readonly slab: Slab | undefined;
  /** Gives what was lent back. */
  release: (() => void) | undefined;
}

export class ReplyQueue {
  readonly #socket: Socket;
  readonly #onSent: () => void;
  readonly #spareSlabs: Slab[] = [];
  #current: Slab = { bytes: Buffer.alloc(0), chunks: 0 };
  /** Of the current slab, `#start` to `#end` waits to be queued; what is below `#start` is queued or sent. */
  #start = 0;
  #end = 0;
  #queue: Chunk[] = [];
  #queuedBytes = 0;
  #writing: Chunk[] = [];
  #writingBytes = 0;
  #disposed = false;

  /** `onSent` is called after each write to the socket, when there is room for more. */
  constructor(socket: Socket, onSent: () => void) {
    this.#socket = socket;
    this.#onSent = onSent;
  }

  /** Bytes that the socket has not taken yet. */
  get pendingBytes(): number {
    return this.#queuedBytes + this.#end - this.#start + this.#writingBytes;
  }

  get isWriting(): boolean {
    return this.#writing.length > 0;
  }

  /** The slab that `reserve` speaks of. */
  get slab(): Buffer {
    return this.#current.bytes;
  }

  /** Room for `length` bytes of the reply, which the caller fills now. Returns where in `slab`. */
  reserve(length: number): number {
    if (this.#end + length > this.#current.bytes.length) {
      this.#nextSlab(length);
    }
    const at = this.#end;
    this.#end += length;
    return at;
  }

  /** Appends a copy of the bytes. */
  copy(bytes: Uint8Array): void {
    const at = this.reserve(bytes.length);
    this.slab.set(bytes, at);
  }

  /** Appends the bytes themselves, which stay as they are until they are sent. See whenSent. */
  lend(bytes: Uint8Array): void {
    this.#seal();
    for (let at = 0; at < bytes.length; at += WRITE_BYTES) {
      this.#push({ bytes: bytes.subarray(at, at + WRITE_BYTES), slab: undefined, release: undefined });
    }
  }

  /** Calls back once, when all that was just appended is sent or never will be. */
  whenSent(release: () => void): void {
    this.#seal();
    const last = this.#queue.at(-1);
    if (last === undefined) {
      release();
    } else {
      last.release = release;
    }
  }

  /** Hands what is there to the socket, unless a write is under way. Returns whether there was something. */
  flush(): boolean {
    if (this.#writing.length > 0 || this.#disposed || this.#socket.destroyed) {
      return false;
    }
    this.#seal();
    if (this.#queue.length === 0) {
      return false;
    }
    let count = 0;
    let bytes = 0;
    while (count < this.#queue.length && count < WRITE_CHUNKS_MAX && bytes < WRITE_BYTES) {
      bytes += this.#queue[count].bytes.length;
      count += 1;
    }
    this.#writing = count === this.#queue.length ? this.#queue : this.#queue.slice(0, count);
    this.#queue = count === this.#queue.length ? [] : this.#queue.slice(count);
    this.#queuedBytes -= bytes;
    this.#writingBytes = bytes;
    this.#write();
    return true;
  }

  /** The socket is closed: gives back what was lent. The queue takes nothing from now on. */
  dispose(): void {
    this.#disposed = true;
    this.#seal();
    const chunks = [...this.#writing, ...this.#queue];
    this.#writing = [];
    this.#queue = [];
    this.#writingBytes = 0;
    this.#queuedBytes = 0;
    for (const chunk of chunks) {
      this.#finish(chunk);
    }
  }

  #write(): void {
    const chunks = this.#writing;
    const last = chunks.length - 1;
    if (last === 0) {
      this.#socket.write(chunks[0].bytes, this.#onWritten);
      return;
    }
    this.#socket.cork();
    for (let n = 0; n < last; n++) {
      this.#socket.write(chunks[n].bytes);
    }
    this.#socket.write(chunks[last].bytes, this.#onWritten);
    this.#socket.uncork();
  }

  /** After a failure too: the socket tells that by its own events, and dispose() follows. */
  readonly #onWritten = (): void => {
    const chunks = this.#writing;
    if (chunks.length === 0) {
      return;
    }
    this.#writing = [];
    this.#writingBytes = 0;
    for (const chunk of chunks) {
      this.#finish(chunk);
    }
    if (this.#current.chunks === 0 && this.#start === this.#end) {
      // The next reply finds the same memory, in the cache.
      this.#start = 0;
      this.#end = 0;
    }
    this.#onSent();
  };

  #finish(chunk: Chunk): void {
    const { slab } = chunk;
    if (slab !== undefined) {
      slab.chunks -= 1;
      if (slab.chunks === 0 && slab !== this.#current) {
        this.#spare(slab);
      }
    }
    chunk.release?.();
  }

  #nextSlab(length: number): void {
    assert(length <= SLAB_BYTES, 'a reply that is gathered fits in a slab');
    this.#seal();
    const full = this.#current;
    this.#current = this.#spareSlabs.pop() ?? { bytes: Buffer.allocUnsafeSlow(SLAB_BYTES), chunks: 0 };
    this.#start = 0;
    this.#end = 0;
    if (full.chunks === 0) {
      this.#spare(full);
    }
  }

  #spare(slab: Slab): void {
    if (slab.bytes.length === SLAB_BYTES && this.#spareSlabs.length < SPARE_SLABS_MAX) {
      this.#spareSlabs.push(slab);
    }
  }

  /** Queues what was gathered. */
  #seal(): void {
    if (this.#end > this.#start) {
      const bytes = this.#current.bytes.subarray(this.#start, this.#end);
      this.#start = this.#end;
      this.#current.chunks += 1;
      this.#push({ bytes, slab: this.#current, release: undefined });
    }
  }

  #push(chunk: Chunk): void {
    if (this.#disposed) {
      this.#finish(chunk);
      return;
    }
    this.#queue.push(chunk);
    this.#queuedBytes += chunk.bytes.length;
  }
}
