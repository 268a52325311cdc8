/**
 * A virtio device on a vhost-user socket: front-ends come one after the other. A device has one driver, so the next
 * one waits, in the socket's backlog, until the one before it has gone.
 */
import { errorMessage, SystemCallError, VduseError } from '../../base/errors.js';
import { listenHint, systemReason } from '../../base/socket-errors.js';
import type { VirtioDevice } from '../../device/virtio-device.js';
import { type FdWatcher, watchReadable } from '../../native/fd-watcher.js';
import { connectUnix, UnixListener } from '../../native/unix-socket.js';
import { type SessionOptions, VhostUserSession } from './session.js';

export type VhostUserAddress =
  /** A path, or `@` and a name of the abstract namespace. Server: listens there; else it connects, again and again. */
  | { readonly type: 'unix'; readonly path: string; readonly server: boolean }
  /** A socket that listens, of this process, which the transport takes over. */
  | { readonly type: 'fd'; readonly fd: number };

export interface VhostUserTransportOptions extends Omit<SessionOptions, 'drainTimeoutMs'> {
  readonly device: VirtioDevice;
  readonly address: VhostUserAddress;
  readonly drainTimeoutMs?: number;
}

/** QEMU waits without a bound; a disk that takes longer is not going to answer. */
const drainTimeoutMsDefault = 30_000;
/** Between two attempts to connect to a front-end that listens. */
const reconnectMs = 1000;

export class VhostUserTransport {
  readonly #options: SessionOptions;
  readonly #address: VhostUserAddress;
  readonly #listener: UnixListener | undefined;
  #watcher: FdWatcher | undefined;
  #timer: NodeJS.Timeout | undefined;
  #session: VhostUserSession | undefined;
  #served: Promise<void> = Promise.resolve();
  #closed = false;

  /** Listens, or starts to connect. Throws what keeps it from listening; nothing is left then. */
  constructor(options: VhostUserTransportOptions) {
    const { address, device, logger, name, drainTimeoutMs = drainTimeoutMsDefault } = options;
    this.#options = { device, logger, name, drainTimeoutMs };
    this.#address = address;
    if (address.type === 'fd') {
      this.#listener = UnixListener.adopt(address.fd);
    } else if (address.server) {
      this.#listener = listenAt(address.path);
    }
    this.#next();
  }

  /** Whether a front-end is connected. */
  get connected(): boolean {
    return this.#session !== undefined;
  }

  /** Ends the session, requests in flight first, and stops listening. */
  async close(): Promise<void> {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#stopWaiting();
    this.#session?.close();
    await this.#served;
    this.#listener?.close();
  }

  #stopWaiting(): void {
    this.#watcher?.close();
    this.#watcher = undefined;
    clearTimeout(this.#timer);
  }

  /** Waits for the next front-end. */
  #next(): void {
    if (this.#closed) {
      return;
    }
    const listener = this.#listener;
    if (listener === undefined) {
      this.#connect();
      return;
    }
    this.#watcher = watchReadable(listener.fd, () => {
      const fd = this.#accept(listener);
      if (fd !== undefined) {
        this.#serve(fd);
      }
    });
  }

  #accept(listener: UnixListener): number | undefined {
    try {
      return listener.accept();
    } catch (error) {
      // Out of descriptors, as a rule: level triggered, the watch would ask again at once, so it pauses.
      this.#options.logger.error({ export: this.#options.name }, errorMessage(error));
      this.#stopWaiting();
      this.#timer = setTimeout(() => this.#next(), reconnectMs);
      return undefined;
    }
  }

  #connect(): void {
    const { path } = this.#address as { path: string };
    try {
      this.#serve(connectUnix(path));
    } catch (error) {
      this.#options.logger.debug({ export: this.#options.name }, errorMessage(error));
      this.#timer = setTimeout(() => this.#next(), reconnectMs);
    }
  }

  #serve(fd: number): void {
    this.#stopWaiting();
    const { name, logger } = this.#options;
    logger.info({ export: name }, `'${name}': a front-end has connected`);
    const session = new VhostUserSession(fd, this.#options);
    this.#session = session;
    this.#served = session.run().then(() => {
      logger.info({ export: name }, `'${name}': the front-end has gone`);
      this.#session = undefined;
      if (this.#listener !== undefined) {
        this.#next();
      } else if (!this.#closed) {
        this.#timer = setTimeout(() => this.#next(), reconnectMs);
      }
    });
  }
}

function listenAt(path: string): UnixListener {
  try {
    return new UnixListener(path);
  } catch (error) {
    if (!(error instanceof SystemCallError)) {
      throw error;
    }
    throw new VduseError('SYSTEM_CALL', `cannot listen at ${path}: ${systemReason(error)}`, {
      cause: error,
      hint: listenHint(path, error),
    });
  }
}
