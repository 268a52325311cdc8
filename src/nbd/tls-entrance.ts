/**
 * The way into a server that insists on TLS: greeting, unencrypted options up to NBD_OPT_STARTTLS, the TLS handshake,
 * and whether this client may come at all. Until all of that is over the client has learnt nothing of the exports.
 */
import type { Socket } from 'node:net';
import { createServer as createTlsServer, type TLSSocket } from 'node:tls';
import { errorMessage } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { Bytes } from '../base/nbd-protocol.js';
import type { TlsCredentials } from '../base/tls-credentials.js';
import type { Clock } from './connection.js';
import type { NbdClientLimits } from './nbd-limits.js';
import { writeGreeting } from './option-encoder.js';
import { peerName } from './peer-name.js';
import { PlainOptions } from './plain-options.js';

/** Who may come, and how they prove it. */
export interface NbdTls {
  /** With the server's endpoint. */
  readonly credentials: TlsCredentials;
  /** Whether the client whose certificate has this distinguished name may come. Throws when that can't be told. */
  readonly authorize?: (name: string) => boolean;
}

export interface TlsEntranceOptions {
  /** As the server accepted it, paused. */
  readonly socket: Socket;
  readonly tls: NbdTls;
  readonly limits: NbdClientLimits;
  readonly clock: Clock;
  readonly logger: Logger;
  /** The client has come in: the socket is the callee's from now on. */
  readonly onSecured: (secured: TLSSocket, clientFlags: number) => void;
}

export class TlsEntrance {
  /** Nothing before TLS. */
  readonly served = undefined;
  /** Settles when the client is in or gone. */
  readonly closed: Promise<void>;
  readonly openedMs: number;
  readonly #options: TlsEntranceOptions;
  readonly #socket: Socket;
  readonly #plain = new PlainOptions();
  readonly #onData = (chunk: Buffer): void => this.#onPlain(chunk);
  #hasStartedTls = false;
  #isOver = false;
  #isDropped = false;
  #reportClosed: () => void = () => undefined;

  constructor(options: TlsEntranceOptions) {
    const { socket, clock, logger } = options;
    this.#options = options;
    this.openedMs = clock.nowMs;
    this.#socket = socket.setNoDelay(true).setKeepAlive(true);
    this.closed = new Promise((report) => {
      this.#reportClosed = report;
    });
    socket.on('error', (error) => logger.debug(`NBD client: ${error.message}`));
    socket.on('close', () => this.#end());
    socket.on('end', () => this.#onEnd());
    socket.on('data', this.#onData);
    const greeting = new Uint8Array(Bytes.greeting);
    writeGreeting(greeting, 0);
    socket.write(greeting);
    socket.resume();
  }

  get isDestroyed(): boolean {
    return this.#socket.destroyed;
  }

  /** There is nothing to end politely. */
  shutDown(): void {
    this.destroy();
  }

  destroy(reason?: string): void {
    // Once: its end is an error of the TLS handshake, too.
    if (reason !== undefined && !this.#isDropped) {
      this.#options.logger.warn(`NBD client dropped: ${reason}`);
    }
    this.#isDropped = true;
    this.#socket.destroy();
  }

  /** The server's timer. */
  checkTime(): void {
    const { clock, limits } = this.#options;
    if (!this.#isOver && clock.nowMs - this.openedMs > limits.handshakeTimeoutMs) {
      const what = this.#hasStartedTls ? 'finished no TLS handshake' : 'did not ask for TLS';
      this.destroy(`it ${what} in ${limits.handshakeTimeoutMs} ms`);
    }
  }

  #end(): void {
    this.#isOver = true;
    this.#reportClosed();
  }

  /** Later it is TLS's to notice. */
  #onEnd(): void {
    if (!this.#hasStartedTls) {
      this.#socket.destroySoon();
    }
  }

  #onPlain(chunk: Buffer): void {
    if (this.#socket.destroyed) {
      return;
    }
    const { replies, end, fault } = this.#plain.take(chunk);
    if (fault !== undefined) {
      this.destroy(fault);
      return;
    }
    if (replies.length > 0) {
      this.#socket.write(replies);
    }
    if (end === 'abort') {
      this.#socket.off('data', this.#onData);
      this.#socket.destroySoon();
    } else if (end === 'tls') {
      this.#startTls();
    }
  }

  /** A server of its own for each client: sessions are not resumed, so that every client shows its certificate. */
  #startTls(): void {
    const { credentials } = this.#options.tls;
    this.#hasStartedTls = true;
    this.#socket.off('data', this.#onData);
    // The end of what the client sends is the end of the handshake.
    this.#socket.allowHalfOpen = false;
    try {
      const server = createTlsServer(credentials.serverOptions());
      server.once('secureConnection', (secured) => this.#onSecured(secured));
      server.once('tlsClientError', (error, secured) => this.#onTlsError(error, secured));
      server.emit('connection', this.#socket);
    } catch (error) {
      this.destroy(`TLS: ${errorMessage(error)}`);
    }
  }

  #onTlsError(error: Error, secured: TLSSocket): void {
    // Why a certificate was refused is told before the connection's end is.
    const reason = (secured.authorizationError as Error | string | null) ?? opensslReason(error);
    this.#refuse(secured, `TLS: ${errorMessage(reason)}`);
  }

  #onSecured(secured: TLSSocket): void {
    if (this.#isOver || this.#socket.destroyed) {
      secured.destroy();
      return;
    }
    const refusal = this.#refusal(secured);
    if (refusal !== undefined) {
      this.#refuse(secured, refusal);
      return;
    }
    secured.allowHalfOpen = true;
    this.#options.onSecured(secured, this.#plain.clientFlags);
    this.#end();
  }

  /** Why the client may not come. */
  #refusal(secured: TLSSocket): string | undefined {
    const { authorize } = this.#options.tls;
    if (authorize === undefined) {
      return undefined;
    }
    const name = peerName(secured);
    if (name === undefined) {
      return 'TLS: it showed no certificate';
    }
    try {
      return authorize(name) ? undefined : `TLS x509 authz check for ${name} is denied`;
    } catch (error) {
      return `TLS x509 authz check for ${name}: ${errorMessage(error)}`;
    }
  }

  #refuse(secured: TLSSocket, reason: string): void {
    secured.on('error', () => undefined);
    secured.destroy();
    this.destroy(reason);
  }
}

/** The few words in the middle of OpenSSL's line, such as `peer did not return a certificate`. */
function opensslReason(error: Error & { readonly reason?: unknown }): Error | string {
  return typeof error.reason === 'string' ? error.reason : error;
}
