/**
 * Connects to an NBD server and shakes hands, on a reactor and without waiting: at the opening of a node on the main
 * thread, later on a queue thread. One attempt, which ends in the time it is given.
 */
import { errorMessage, VduseError } from '../../../base/errors.js';
import { Errno } from '../../../native/errno.js';
import { closeFd, readFd, writeFd } from '../../../native/fd.js';
import { systemCallError } from '../../../native/ffi.js';
import { pollIn, pollOut, RingOp } from '../../../native/ring.js';
import { closeSocket, startConnect, takeSocketError } from '../../../native/stream-socket.js';
import { socketPair } from '../../../native/unix-socket.js';
import type { EventSource, Reactor } from '../../../reactor/reactor.js';
import { type HandshakeSteps, handshake, type NbdExportInfo } from './handshake.js';

/** Where the server is: plain data, so that it crosses threads. */
export interface ConnectTarget {
  /** struct sockaddr, tried one after the other. Empty where a relay connects, or nobody can. */
  readonly addresses: readonly Uint8Array[];
  /** A socket that takes numbers of descriptors, for each of which TLS is spoken on the other side; -1: none. */
  readonly relayFd: number;
  readonly exportName: string;
}

export interface ConnectorSink {
  /** The descriptor is the sink's now. */
  onConnected(fd: number, info: NbdExportInfo): void;
  onConnectFailed(error: VduseError): void;
}

/** Turns of the handshake in one go: a server that answers at once does not keep the thread for itself. */
const stepsMax = 64;

/** Servers say nothing to clients whose certificate's name they refuse, and to more clients than they take. */
const closedHint =
  "The server's log may say why: too many clients, one that it does not admit, or it is no NBD server.";

export class NbdConnector implements EventSource {
  readonly #reactor: Reactor;
  readonly #target: ConnectTarget;
  readonly #sink: ConnectorSink;
  readonly #source: number;
  #fd = -1;
  #attempt = 0;
  #address = 0;
  #connecting = false;
  #deadlineMs = Number.POSITIVE_INFINITY;
  #steps: HandshakeSteps<NbdExportInfo> | undefined;
  /** What the generator waits for: bytes to send from `#done` on, or a buffer to fill. */
  #buffer: Uint8Array = new Uint8Array(0);
  #sending = false;
  #done = 0;

  constructor(reactor: Reactor, target: ConnectTarget, sink: ConnectorSink) {
    this.#reactor = reactor;
    this.#target = target;
    this.#sink = sink;
    this.#source = reactor.add(this);
  }

  get isBusy(): boolean {
    return this.#fd >= 0;
  }

  /** False: the connection was handed over, and there is no address to make another one. */
  get canConnect(): boolean {
    return this.#target.relayFd >= 0 || this.#target.addresses.length > 0;
  }

  /** The sink hears of the end, maybe at once. */
  start(timeoutMs: number): void {
    this.#deadlineMs = performance.now() + timeoutMs;
    if (!this.canConnect) {
      this.#sink.onConnectFailed(
        new VduseError('NOT_SUPPORTED', 'a connection that was handed over can not be made again'),
      );
    } else if (this.#target.relayFd >= 0) {
      this.#startRelayed();
    } else {
      this.#address = 0;
      this.#connect();
    }
  }

  /** Shakes hands on a socket that is connected, and the connector's now. */
  startOn(fd: number, timeoutMs: number): void {
    this.#deadlineMs = performance.now() + timeoutMs;
    this.#begin(fd);
  }

  /** Ends an attempt; the sink hears nothing. */
  abort(): void {
    if (this.#fd >= 0) {
      this.#forgetPoll();
      closeSocket(this.#fd);
      this.#fd = -1;
    }
  }

  close(): void {
    this.abort();
    this.#reactor.remove(this.#source);
  }

  // EventSource

  poll(): number {
    if (this.#fd >= 0 && performance.now() >= this.#deadlineMs) {
      this.#fail(new VduseError('TIMEOUT', 'the NBD server does not answer'));
      return 1;
    }
    return 0;
  }

  publish(): void {}

  prepareToSleep(): boolean {
    if (this.#fd >= 0) {
      const left = Math.max(0, this.#deadlineMs - performance.now());
      this.#reactor.sleepMs = Math.min(this.#reactor.sleepMs, left);
    }
    return false;
  }

  onCompletion(token: number, _result: number): void {
    if (token !== this.#attempt || this.#fd < 0) {
      return;
    }
    if (this.#connecting) {
      this.#onConnectable();
    } else {
      this.#continue();
    }
  }

  #startRelayed(): void {
    let mine: number;
    let theirs: number;
    try {
      [mine, theirs] = socketPair();
    } catch (error) {
      this.#sink.onConnectFailed(new VduseError('SYSTEM_CALL', errorMessage(error), { cause: error }));
      return;
    }
    if (writeFd(this.#target.relayFd, new Uint8Array(Uint32Array.of(theirs).buffer)) !== 4) {
      closeFd(mine);
      closeFd(theirs);
      this.#sink.onConnectFailed(new VduseError('ABORTED', 'the NBD node is being closed'));
      return;
    }
    this.#begin(mine);
  }

  #connect(): void {
    const result = startConnect(this.#target.addresses[this.#address]);
    if (result < 0) {
      this.#onConnectError(-result);
      return;
    }
    this.#fd = result;
    this.#connecting = true;
    this.#attempt++;
    this.#wait(pollOut);
  }

  #onConnectable(): void {
    const code = takeSocketError(this.#fd);
    if (code !== 0) {
      closeFd(this.#fd);
      this.#fd = -1;
      this.#onConnectError(code);
      return;
    }
    this.#begin(this.#fd);
  }

  #onConnectError(code: number): void {
    this.#address++;
    if (this.#address < this.#target.addresses.length) {
      this.#connect();
    } else {
      this.#sink.onConnectFailed(systemCallError('connect', code));
    }
  }

  #begin(fd: number): void {
    this.#fd = fd;
    this.#connecting = false;
    this.#attempt++;
    this.#steps = handshake(this.#target.exportName);
    this.#advance(new Uint8Array(0));
    this.#continue();
  }

  /** Goes on as far as the socket lets it. */
  #continue(): void {
    for (let n = 0; n < stepsMax && this.#fd >= 0 && this.#steps !== undefined; n++) {
      const rest = this.#buffer.subarray(this.#done);
      const count = this.#sending ? writeFd(this.#fd, rest) : readFd(this.#fd, rest);
      if (count === -Errno.EAGAIN) {
        break;
      }
      if (count <= 0) {
        const reason = count === 0 ? 'the NBD server closed the connection during the handshake' : undefined;
        this.#fail(
          reason === undefined
            ? systemCallError('NBD handshake', -count)
            : new VduseError('PROTOCOL', reason, { hint: closedHint }),
        );
        return;
      }
      this.#done += count;
      if (this.#done === this.#buffer.length) {
        this.#advance(this.#buffer);
      }
    }
    if (this.#fd >= 0 && this.#steps !== undefined) {
      this.#wait(this.#sending ? pollOut : pollIn);
    }
  }

  /** Gives the generator what it asked for. */
  #advance(received: Uint8Array): void {
    try {
      const step = this.#steps!.next(received);
      if (step.done === true) {
        this.#finish(step.value);
        return;
      }
      this.#sending = 'send' in step.value;
      this.#buffer = 'send' in step.value ? step.value.send : new Uint8Array(step.value.receive);
      this.#done = 0;
    } catch (error) {
      this.#fail(error instanceof VduseError ? error : new VduseError('PROTOCOL', errorMessage(error)));
    }
  }

  #finish(info: NbdExportInfo): void {
    const fd = this.#fd;
    this.#fd = -1;
    this.#steps = undefined;
    this.#sink.onConnected(fd, info);
  }

  #fail(error: VduseError): void {
    this.#steps = undefined;
    this.abort();
    this.#sink.onConnectFailed(error);
  }

  #wait(events: number): void {
    this.#reactor.ring.prepare(RingOp.POLL_ADD, this.#fd, 0, 0, 0, events, 0, this.#source, this.#attempt);
  }

  #forgetPoll(): void {
    const target = { source: this.#source, token: this.#attempt };
    this.#attempt++;
    this.#reactor.ring.prepareCancel(target, this.#source, 0);
  }
}
