/** Messages from the driver to a device, and the answers: ids, the time limit, and what a re-open does. */
import { Errno } from '../native/errno.js';
import { vduseMessageBytes } from '../native/vduse-abi.js';
import type { VduseTrace } from './trace.js';

/** What waits for its answer. Resolves with the response's bytes, or undefined where it failed. */
interface PendingMessage {
  readonly id: number;
  readonly bytes: Uint8Array;
  readonly settle: (response: Uint8Array | undefined) => void;
  timer: NodeJS.Timeout | undefined;
}

const bodyOffset = 24;
const resultOffset = 4;

export class MessageQueue {
  /** Not read yet, and read but not answered. */
  #toSend: PendingMessage[] = [];
  #sent: PendingMessage[] = [];
  #nextId = 0;
  #broken = false;
  /** Called when a message waits to be read, or the device broke. */
  readonly #onReadable: () => void;
  readonly #trace: VduseTrace | undefined;
  timeoutMs: number;

  constructor(options: {
    timeoutMs: number;
    onReadable: () => void;
    trace?: VduseTrace | undefined;
  }) {
    this.timeoutMs = options.timeoutMs;
    this.#onReadable = options.onReadable;
    this.#trace = options.trace;
  }

  /** A message was not answered in time: the device is broken for good. */
  get broken(): boolean {
    return this.#broken;
  }

  get hasUnread(): boolean {
    return this.#toSend.length > 0;
  }

  /** Sends a message and waits for its answer's bytes; undefined: refused, late, or the device is broken. */
  send(type: number, writeBody: (body: DataView) => void): Promise<Uint8Array | undefined> {
    if (this.#broken) {
      return Promise.resolve(undefined);
    }
    return new Promise((resolve) => {
      const bytes = new Uint8Array(vduseMessageBytes);
      const view = new DataView(bytes.buffer);
      const id = this.#nextId;
      this.#nextId = (this.#nextId + 1) >>> 0;
      view.setUint32(0, type, true);
      view.setUint32(4, id, true);
      writeBody(new DataView(bytes.buffer, bodyOffset));
      const message: PendingMessage = { id, bytes, settle: resolve, timer: undefined };
      if (this.timeoutMs > 0) {
        message.timer = setTimeout(() => this.#break(), this.timeoutMs);
      }
      this.#toSend.push(message);
      this.#trace?.({ kind: 'message', bytes });
      this.#onReadable();
    });
  }

  /** Returns the bytes read or a negative errno. */
  read(buffer: Uint8Array): number {
    if (buffer.byteLength < vduseMessageBytes) {
      return -Errno.EINVAL;
    }
    const message = this.#toSend.shift();
    if (message === undefined) {
      return -Errno.EAGAIN;
    }
    buffer.set(message.bytes);
    this.#sent.push(message);
    return vduseMessageBytes;
  }

  /** Returns the bytes taken or a negative errno. */
  write(buffer: Uint8Array): number {
    if (buffer.byteLength < vduseMessageBytes || buffer.subarray(8, bodyOffset).some((byte) => byte !== 0)) {
      return -Errno.EINVAL;
    }
    const response = buffer.slice(0, vduseMessageBytes);
    const view = new DataView(response.buffer);
    const id = view.getUint32(0, true);
    const message = this.#sent.find((other) => other.id === id);
    if (message === undefined) {
      return -Errno.ENOENT;
    }
    this.#sent = this.#sent.filter((other) => other !== message);
    clearTimeout(message.timer);
    this.#trace?.({ kind: 'answer', bytes: response });
    message.settle(view.getUint32(resultOffset, true) === 0 ? response : undefined);
    return vduseMessageBytes;
  }

  /** The opener has gone: what it read and did not answer is for the next one, before what is new. */
  reopen(): void {
    this.#toSend = [...this.#sent, ...this.#toSend];
    this.#sent = [];
  }

  /** Fails everything that waits: the device goes. */
  close(): void {
    for (const message of [...this.#toSend, ...this.#sent]) {
      clearTimeout(message.timer);
      message.settle(undefined);
    }
    this.#toSend = [];
    this.#sent = [];
  }

  #break(): void {
    this.#broken = true;
    this.close();
    this.#onReadable();
  }
}
