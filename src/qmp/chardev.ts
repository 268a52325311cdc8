/** Character devices, as QEMU has them: what a front-end (a monitor) gets its connections from. */
import type { Socket } from 'node:net';
import { VduseError } from '../base/errors.js';

/** What a front-end makes of a connection. */
export interface ChardevSession {
  /** Never rejects. */
  readonly ended: Promise<void>;
  close(): Promise<void>;
}

export interface ChardevFrontEnd {
  onConnection(socket: Socket): ChardevSession;
  /** Tells a client why it can't be served. The connection is closed then. */
  refuse(socket: Socket): void;
}

export interface Chardev {
  readonly id: string;
  /** QEMU's description, such as `disconnected:unix:/run/qmp.sock,server=on`. */
  readonly filename: string;
  readonly isAttached: boolean;
  /** Settles at the first connection, or when there will be none. */
  readonly connected: Promise<void>;
  /** Claims the device for a front-end, which gets connections once serve() was called. Throws BUSY. */
  attach(frontEnd: ChardevFrontEnd): void;
  serve(): void;
  /** Ends the connection and takes no further one. Idempotent. */
  close(): Promise<void>;
}

/** Nobody ever connects to it. */
export class NullChardev implements Chardev {
  readonly id: string;
  readonly filename = 'null';
  readonly connected = Promise.resolve();
  #isAttached = false;

  constructor(id: string) {
    this.id = id;
  }

  get isAttached(): boolean {
    return this.#isAttached;
  }

  attach(): void {
    if (this.#isAttached) {
      throw new VduseError('BUSY', `Device '${this.id}' is in use`);
    }
    this.#isAttached = true;
  }

  serve(): void {}

  async close(): Promise<void> {}
}
