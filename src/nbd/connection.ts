/**
 * One client: its socket, its handshake and then its requests, and the end of all that. The socket is read only as
 * far as the phase at hand takes what comes, so a client that asks for too much waits in its own socket.
 */
import type { Socket } from 'node:net';
import { assert } from '../base/assert.js';
import type { Logger } from '../base/log.js';
import type { StayAwake } from './awake.js';
import { Handshake } from './handshake.js';
import { type NbdClientLimits, nbdLimits } from './nbd-limits.js';
import type { SocketReader } from './receiving-socket.js';
import { ReplyQueue } from './reply-queue.js';
import type { SessionTerms } from './request.js';
import type { ServedExport } from './served-export.js';
import { Transmission } from './transmission.js';

/**
 * The server's time: its one timer moves it on, a step at a time, so a process that was held up for long does not
 * blame its clients for that.
 */
export interface Clock {
  readonly nowMs: number;
}

export interface ConnectionOptions {
  /** Makes the client's bytes come to the reader; returns its socket. */
  readonly receive: (reader: SocketReader) => Socket;
  /** Of a client that came through TLS: what it said to the greeting, and when it connected. */
  readonly secured?: { readonly clientFlags: number; readonly openedMs: number };
  readonly exports: ReadonlyMap<string, ServedExport>;
  readonly limits: NbdClientLimits;
  readonly clock: Clock;
  readonly awake: StayAwake;
  readonly logger: Logger;
}

const nothing = Buffer.alloc(0);
/** Room for the requests before a long payload. */
const headersBytes = 4096;

export class NbdConnection {
  /** Settles when the socket is closed and the export has given back, or was given back, everything. */
  readonly closed: Promise<void>;
  readonly #options: ConnectionOptions;
  readonly #socket: Socket;
  readonly #queue: ReplyQueue;
  readonly #logger: Logger;
  readonly #openedMs: number;
  readonly #handshake: Handshake;
  #transmission: Transmission | undefined;
  #served: ServedExport | undefined;

  /** Where bytes come that are not received in place. Nothing comes while some of them wait. */
  readonly #memory = new Uint8Array(nbdLimits.receivedBytesMax);
  #place: Uint8Array = this.#memory;
  /** What came and was not taken yet. */
  #chunk: Uint8Array = nothing;
  #at = 0;
  #isPumping = false;
  #isWakeScheduled = false;
  #isPaused = false;
  /** The client sends no more: what it sent is still carried out. */
  #isInputOver = false;
  /** The server wants to close, as soon as nothing is under way. */
  #isShuttingDown = false;
  /** Nothing more is taken from the client; what is under way is answered, and then the socket is closed. */
  #isEnding = false;
  #isSocketClosed = false;
  #receivedMs: number;
  #writingMs: number;
  #reportClosed: () => void = () => undefined;

  constructor(options: ConnectionOptions) {
    const { clock, secured } = options;
    this.#options = options;
    const socket = options.receive({
      place: () => this.#nextPlace(),
      onReceived: (count) => this.#onReceived(count),
    });
    this.#socket = socket;
    this.#logger = options.logger;
    this.#openedMs = secured?.openedMs ?? clock.nowMs;
    this.#receivedMs = clock.nowMs;
    this.#writingMs = clock.nowMs;
    this.closed = new Promise((report) => {
      this.#reportClosed = report;
    });
    this.#queue = new ReplyQueue(socket, () => this.#pump());
    this.#handshake = new Handshake({
      queue: this.#queue,
      securedFlags: secured?.clientFlags,
      exports: options.exports,
      onChosen: (terms) => this.#onChosen(terms),
      onFinished: (fault) => this.#end(fault),
    });
    socket.on('end', () => {
      this.#isInputOver = true;
      this.#pump();
    });
    socket.on('error', (error) => this.#logger.debug(`NBD client: ${error.message}`));
    socket.on('close', () => this.#onSocketClosed());
    this.#handshake.greet();
    this.#queue.flush();
  }

  /** What the client chose; undefined while it negotiates. */
  get served(): ServedExport | undefined {
    return this.#served;
  }

  get isDestroyed(): boolean {
    return this.#socket.destroyed;
  }

  /** Answers what is under way, refuses what still comes, and closes. */
  shutDown(): void {
    if (this.#transmission === undefined) {
      this.destroy();
      return;
    }
    this.#isShuttingDown = true;
    this.#transmission.refuseAll();
    this.#pump();
  }

  /** Closes at once. What the export has is waited for, and then given back. */
  destroy(reason?: string): void {
    if (reason !== undefined) {
      this.#logger.warn(`NBD client dropped: ${reason}`);
    }
    this.#socket.destroy();
  }

  /** The server's timer: ends clients that hold something and let time pass. An idle client holds nothing. */
  checkTime(): void {
    const { handshakeTimeoutMs, stallTimeoutMs } = this.#options.limits;
    const { nowMs } = this.#options.clock;
    const transmission = this.#transmission;
    if (this.#socket.destroyed) {
      return;
    }
    if (transmission === undefined && nowMs - this.#openedMs > handshakeTimeoutMs) {
      this.destroy(`it chose no export in ${handshakeTimeoutMs} ms`);
    } else if (this.#queue.isWriting && nowMs - this.#writingMs > stallTimeoutMs) {
      this.destroy(`it read no reply for ${stallTimeoutMs} ms`);
    } else if (
      transmission?.isMidRequest === true &&
      !this.#isPaused &&
      nowMs - this.#receivedMs > stallTimeoutMs
    ) {
      this.destroy(`it began a request and sent nothing more for ${stallTimeoutMs} ms`);
    }
  }

  #nextPlace(): Uint8Array {
    const transmission = this.#transmission;
    this.#place =
      transmission?.payloadPlace ??
      (transmission?.expectsPayload === true ? this.#memory.subarray(0, headersBytes) : this.#memory);
    return this.#place;
  }

  #onReceived(count: number): void {
    // From Node 24 on, what a socket had read before it was destroyed still comes.
    if (this.#socket.destroyed) {
      return;
    }
    assert(this.#at === this.#chunk.length, 'a paused socket gives no data');
    this.#receivedMs = this.#options.clock.nowMs;
    this.#options.awake.onReceived();
    if (this.#place.buffer === this.#memory.buffer) {
      this.#chunk = this.#memory.subarray(0, count);
      this.#at = 0;
    } else {
      this.#transmission?.onPayload(count);
    }
    this.#pump();
  }

  /** Takes what can be taken, sends what can be sent. Called whenever one of the two may have changed. */
  #pump(): void {
    // A socket that is destroyed has a last event to come, which gives everything back.
    if (this.#isPumping || this.#socket.destroyed) {
      return;
    }
    this.#isPumping = true;
    this.#consume();
    if (!this.#queue.isWriting) {
      this.#writingMs = this.#options.clock.nowMs;
    }
    if (this.#queue.flush()) {
      this.#options.awake.onReplied();
    }
    this.#isPumping = false;
    this.#closeIfDone();
  }

  #consume(): void {
    let phase: Handshake | Transmission | undefined;
    // Twice when the chunk holds the end of the handshake.
    while (!this.#isEnding && phase !== this.#phase) {
      phase = this.#phase;
      this.#at = phase.consume(this.#chunk, this.#at);
    }
    if (this.#isEnding || this.#at === this.#chunk.length) {
      this.#chunk = nothing;
      this.#at = 0;
    }
    const mustPause = this.#isEnding || this.#phase.isBlocked;
    if (mustPause && !this.#isPaused) {
      this.#socket.pause();
    } else if (!mustPause && this.#isPaused) {
      this.#receivedMs = this.#options.clock.nowMs;
      this.#socket.resume();
    }
    this.#isPaused = mustPause;
  }

  get #phase(): Handshake | Transmission {
    return this.#transmission ?? this.#handshake;
  }

  #onChosen(terms: SessionTerms): void {
    this.#served = terms.served;
    this.#logger.debug(`NBD client: export ${JSON.stringify(terms.served.name)}`);
    this.#transmission = new Transmission({
      terms,
      queue: this.#queue,
      limits: this.#options.limits,
      logger: this.#logger,
      onProgress: () => this.#wake(),
      onFinished: (fault) => this.#end(fault),
    });
  }

  /** Once for all requests that complete in this turn of the event loop, so that their replies go together. */
  #wake(): void {
    if (!this.#isWakeScheduled) {
      this.#isWakeScheduled = true;
      process.nextTick(this.#onWake);
    }
  }

  readonly #onWake = (): void => {
    this.#isWakeScheduled = false;
    this.#pump();
    this.#reportIfClosed();
  };

  #end(fault?: string): void {
    if (fault !== undefined) {
      this.#logger.warn(`NBD client dropped: ${fault}`);
    }
    this.#isEnding = true;
  }

  #closeIfDone(): void {
    const transmission = this.#transmission;
    if (this.#isInputOver && !this.#phase.isBlocked) {
      transmission?.endInput();
      this.#isEnding = true;
    }
    const isUnderWay = transmission !== undefined && transmission.inFlight > 0;
    if ((this.#isEnding || this.#isShuttingDown) && !isUnderWay && !this.#queue.isWriting) {
      this.#socket.destroySoon();
    }
  }

  #onSocketClosed(): void {
    this.#isSocketClosed = true;
    this.#chunk = nothing;
    this.#at = 0;
    this.#transmission?.abandon();
    this.#queue.dispose();
    this.#reportIfClosed();
  }

  #reportIfClosed(): void {
    if (this.#isSocketClosed && (this.#transmission?.inFlight ?? 0) === 0) {
      this.#reportClosed();
    }
  }
}
