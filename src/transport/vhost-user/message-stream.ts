/** Messages with descriptors over a connected socket: both sides of vhost-user read and write them so. */
import { VduseError } from '../../base/errors.js';
import { closeFd } from '../../native/fd.js';
import { type FdWatcher, watchReadable } from '../../native/fd-watcher.js';
import { passedFdsMax, receiveMessage, sendMessage } from '../../native/unix-socket.js';
import { HEADER, payloadBytesMax } from './protocol.js';

export interface VhostUserMessage {
  readonly request: number;
  readonly flags: number;
  readonly payload: Uint8Array;
  /** They belong to whoever takes the message. */
  readonly fds: readonly number[];
}

export function closeFds(fds: Iterable<number>): void {
  for (const fd of fds) {
    closeFd(fd);
  }
}

export class MessageStream {
  readonly #fd: number;
  readonly #buffer = new Uint8Array(new ArrayBuffer(HEADER.bytes + payloadBytesMax));
  readonly #view = new DataView(this.#buffer.buffer);
  #filled = 0;
  #fds: readonly number[] = [];
  #closed = false;
  #stopWaiting: (() => void) | undefined;

  /** Takes the socket over; `close` closes it. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * The next message; undefined when the other side has closed, or this one. Throws PROTOCOL for a message that
   * is too long, ends early, or has descriptors elsewhere than at its start ("Communication").
   */
  async next(): Promise<VhostUserMessage | undefined> {
    while (!this.#closed) {
      const message = this.#complete();
      if (message !== undefined) {
        return message;
      }
      const room = this.#buffer.subarray(this.#filled, this.#wanted());
      const received = receiveMessage(this.#fd, room, this.#filled === 0 ? passedFdsMax : 0);
      if (received === undefined) {
        await this.#readable();
      } else if (received.length === 0) {
        if (this.#filled > 0) {
          throw new VduseError('PROTOCOL', `the connection ended after ${this.#filled} bytes of a message`);
        }
        return undefined;
      } else {
        this.#fds = this.#filled === 0 ? received.fds : this.#fds;
        this.#filled += received.length;
      }
    }
    return undefined;
  }

  /** Throws where the message can't go out whole and at once: nobody leaves that many answers unread. */
  send(message: { request: number; flags: number; payload?: Uint8Array }, fds: readonly number[] = []): void {
    const bytes = encodeMessage(message);
    if (this.#closed || sendMessage(this.#fd, bytes, fds) < bytes.length) {
      throw new VduseError('PROTOCOL', 'the other side does not read its messages');
    }
  }

  /** Ends the wait for a message, and closes the socket and the descriptors of an unfinished message. */
  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      this.#stopWaiting?.();
      closeFds(this.#fds);
      closeFd(this.#fd);
    }
  }

  /** How many bytes there are to be before the next look. */
  #wanted(): number {
    if (this.#filled < HEADER.bytes) {
      return HEADER.bytes;
    }
    const size = this.#view.getUint32(HEADER.size, true);
    if (size > payloadBytesMax) {
      throw new VduseError(
        'PROTOCOL',
        `a message says that it has ${size} bytes: at most ${payloadBytesMax} are taken`,
      );
    }
    return HEADER.bytes + size;
  }

  #complete(): VhostUserMessage | undefined {
    if (this.#filled < HEADER.bytes || this.#filled < this.#wanted()) {
      return undefined;
    }
    const message = {
      request: this.#view.getUint32(HEADER.request, true),
      flags: this.#view.getUint32(HEADER.flags, true),
      payload: this.#buffer.slice(HEADER.bytes, this.#filled),
      fds: this.#fds,
    };
    this.#filled = 0;
    this.#fds = [];
    return message;
  }

  /** Watches only while there is nothing to do: the watch is level triggered. */
  #readable(): Promise<void> {
    return new Promise((resolve) => {
      const watcher: FdWatcher = watchReadable(this.#fd, () => this.#stopWaiting?.());
      this.#stopWaiting = () => {
        this.#stopWaiting = undefined;
        watcher.close();
        resolve();
      };
    });
  }
}

export function encodeMessage(message: { request: number; flags: number; payload?: Uint8Array }): Uint8Array {
  const payload = message.payload ?? new Uint8Array(0);
  // An explicit buffer: short typed arrays may live on the JavaScript heap, where their address can change.
  const bytes = new Uint8Array(new ArrayBuffer(HEADER.bytes + payload.length));
  const view = new DataView(bytes.buffer);
  view.setUint32(HEADER.request, message.request, true);
  view.setUint32(HEADER.flags, message.flags, true);
  view.setUint32(HEADER.size, payload.length, true);
  bytes.set(payload, HEADER.bytes);
  return bytes;
}
