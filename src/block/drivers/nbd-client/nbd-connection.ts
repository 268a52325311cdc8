// Hot file: synchronous, no allocation per request, no throw.
/**
 * One connection to an NBD server and its life: requests that come while there is none are held, and sent when there
 * is one again; what was under way when it broke is sent again. Data is received and sent by calls that do not wait,
 * when the ring says that the socket is ready, so nothing but these calls ever touches guest memory.
 */
import { VduseError } from '../../../base/errors.js';
import { Command } from '../../../base/nbd-protocol.js';
import { describeErrno, Errno } from '../../../native/errno.js';
import { closeSocket } from '../../../native/stream-socket.js';
import type { EventSource, Reactor } from '../../../reactor/reactor.js';
import type { NbdEngineSpec } from '../../engine.js';
import { ConnectionReporter } from './connection-reports.js';
import { type ConnectorSink, NbdConnector } from './connector.js';
import { isCompatible } from './export-terms.js';
import type { NbdExportInfo } from './handshake.js';
import { type ParkedConnection, ParkedConnections } from './parked-connections.js';
import { ReconnectTimes } from './reconnect-times.js';
import { ReceiveResult, ReplyReader } from './reply-reader.js';
import { RequestSender } from './request-sender.js';
import { Readiness, SocketWaits } from './socket-waits.js';
import { StallWatch } from './stall-watch.js';
import { type WireClient, WireClients } from './wire-clients.js';
import { WireState } from './wire-requests.js';

const Phase = {
  /** No connection, and nobody who needs one: the next request tries. */
  DOWN: 0,
  CONNECTING: 1,
  /** Between two attempts. */
  WAITING: 2,
  READY: 3,
  /** The server broke the protocol: it is not spoken to again. */
  BROKEN: 4,
} as const;

/** Half a reply, or half a request, and then nothing. */
const stallMs = 60_000;

/** Connections that engines of one thread share, by the key of their node. */
const shared = new Map<number, NbdConnection>();

export class NbdConnection implements EventSource, ConnectorSink {
  readonly #spec: NbdEngineSpec;
  readonly #reactor: Reactor;
  readonly #source: number;
  readonly #waits: SocketWaits;
  readonly #parked: ParkedConnections;
  readonly #connector: NbdConnector;
  readonly #clients = new WireClients();
  readonly #sender = new RequestSender(this.#clients);
  readonly #reader = new ReplyReader(this.#clients);
  readonly #parser = this.#reader.parser;
  #phase: number = Phase.DOWN;
  #closed = false;
  #fd = -1;
  /** The socket was looked at a moment ago: the next look can wait for a turn. */
  #looked = false;
  #more = false;
  readonly #stall = new StallWatch(stallMs);
  readonly #times: ReconnectTimes;
  readonly #reporter: ConnectionReporter;
  #completedBefore = 0;

  /**
   * The connection for one more engine: a new one, or the one that all engines of the node share. Throws BUSY where
   * there may be one only and another thread has it.
   */
  static attach(spec: NbdEngineSpec, reactor: Reactor): NbdConnection {
    if (spec.multipleConnections) {
      return new NbdConnection(spec, reactor);
    }
    let connection = shared.get(spec.key);
    if (connection === undefined) {
      if (!new ParkedConnections(spec.parked).claim()) {
        throw new VduseError(
          'BUSY',
          'the NBD server keeps several connections apart (it has no CAN_MULTI_CONN), and another thread has the one there may be',
          {
            hint: 'Use the node for one export only, or start the server so that it allows several connections.',
          },
        );
      }
      connection = new NbdConnection(spec, reactor);
      shared.set(spec.key, connection);
    }
    return connection;
  }

  private constructor(spec: NbdEngineSpec, reactor: Reactor) {
    this.#spec = spec;
    this.#reactor = reactor;
    this.#parked = new ParkedConnections(spec.parked);
    this.#connector = new NbdConnector(reactor, spec.target, this);
    this.#times = new ReconnectTimes(spec.reconnectDelayMs);
    this.#reporter = new ConnectionReporter(spec.key);
    this.#source = reactor.add(this);
    this.#waits = new SocketWaits(reactor, this.#source);
    const parked = this.#parked.take();
    if (parked !== undefined) {
      this.#onReady(parked);
      // The server may have gone while nobody listened.
      this.#receive();
    } else {
      this.#connectAnew();
    }
  }

  /** Returns the client's number, which is the upper half of its requests'. */
  add(client: WireClient): number {
    const index = this.#clients.add(client);
    this.#sender.reserve(this.#clients.slots);
    return index;
  }

  /** Takes a client away that has nothing under way; the connection ends with the last. */
  remove(index: number): void {
    this.#clients.remove(index);
    if (this.#clients.count === 0) {
      this.#close();
    }
  }

  /** Sends a request with the turn's others, or holds it; it may end at once. */
  submit(id: number): void {
    if (this.#phase === Phase.READY) {
      this.#sender.add(id);
      return;
    }
    if (this.#phase === Phase.BROKEN) {
      this.#clients.end(id, -Errno.EIO);
      return;
    }
    this.#clients.requests(id).state[id & 0xffff] = WireState.HELD;
    if (this.#phase === Phase.DOWN) {
      this.#tryOnce(id);
    }
  }

  /** False: the server that is there, maybe another one than before, does not tell the block status. */
  get mayAskStatus(): boolean {
    return this.#phase !== Phase.READY || this.#parser.allocationContext !== undefined;
  }

  /** Ends all requests of a client at once. What the server knows of costs the connection. */
  cancel(index: number, requests: WireClient['requests']): void {
    let known = false;
    for (let slot = 0; slot < requests.capacity; slot++) {
      known ||= requests.state[slot] >= WireState.SENDING;
    }
    if (known) {
      this.#disconnect();
    } else {
      this.#sender.removeAll(index);
    }
    for (let slot = 0; slot < requests.capacity; slot++) {
      if (requests.state[slot] !== WireState.IDLE) {
        this.#clients.end(((index << 16) | slot) >>> 0, -Errno.ECANCELED);
      }
    }
    if (known && !this.#closed) {
      this.#connectAnew();
    }
  }

  // EventSource

  poll(): number {
    if (this.#phase === Phase.READY) {
      return this.#look() + (this.#canSend ? 1 : 0);
    }
    if (this.#phase === Phase.CONNECTING || this.#phase === Phase.WAITING) {
      this.#checkTime(performance.now());
    }
    return 0;
  }

  publish(): void {
    if (this.#canSend) {
      this.#send();
    }
  }

  prepareToSleep(): boolean {
    if (this.#phase === Phase.READY) {
      if (!this.#waits.in) {
        this.#waits.waitIn(this.#fd);
      }
      if (this.#stall.hasStalled(this.#parser.isInMiddle || this.#sender.isInMiddle)) {
        this.#onLost(`nothing moved for ${stallMs / 1000} s in the middle of a message`);
      }
    } else if (this.#phase === Phase.CONNECTING || this.#phase === Phase.WAITING) {
      const now = performance.now();
      const { holdUntilMs, retryAtMs } = this.#times;
      const next = this.#phase === Phase.WAITING ? retryAtMs : holdUntilMs;
      const left = Math.max(0, Math.min(next, holdUntilMs) - now);
      this.#reactor.sleepMs = Math.min(this.#reactor.sleepMs, left);
    }
    return this.#canSend;
  }

  onCompletion(token: number): void {
    if (!this.#closed && this.#waits.onCompletion(token) === Readiness.IN) {
      this.#receive();
    }
  }

  // ConnectorSink

  onConnected(fd: number, info: NbdExportInfo): void {
    if (isCompatible(info, this.#spec)) {
      this.#onReady({ fd, ...info });
    } else {
      closeSocket(fd);
      this.onConnectFailed(new VduseError('IMAGE_INVALID', 'the export is smaller or less able than it was'));
    }
  }

  onConnectFailed(error: VduseError): void {
    this.#reporter.onFailed(error.message);
    this.#waitOrGiveUp();
  }

  #waitOrGiveUp(): void {
    if (this.#times.onFailed(performance.now()) && this.#connector.canConnect) {
      this.#phase = Phase.WAITING;
    } else {
      this.#giveUp();
    }
  }

  #onReady({ fd, structuredReplies, allocationContext }: ParkedConnection): void {
    this.#fd = fd;
    this.#waits.begin();
    this.#phase = Phase.READY;
    this.#more = false;
    this.#reporter.onReady();
    this.#parser.reset(structuredReplies, allocationContext);
    this.#clients.eachHeld(this.#resend);
  }

  get #canSend(): boolean {
    return this.#phase === Phase.READY && !this.#waits.out && !this.#sender.isEmpty;
  }

  readonly #resend = (id: number): void => {
    const command = this.#clients.requests(id).command[id & 0xffff];
    if (command === Command.BLOCK_STATUS && !this.mayAskStatus) {
      this.#clients.end(id, -Errno.EOPNOTSUPP);
    } else {
      this.#sender.add(id);
    }
  };

  readonly #refuse = (id: number): void => this.#clients.end(id, -Errno.EIO);

  /** Looks whether the socket has something, without asking the ring first, every other turn. */
  #look(): number {
    if (this.#more) {
      this.#receive();
      return 1;
    }
    if (this.#waits.in || this.#clients.onWire === 0) {
      return 0;
    }
    if (!this.#looked) {
      this.#looked = true;
      return 0;
    }
    const { completed } = this.#clients;
    this.#receive();
    return this.#clients.completed - completed;
  }

  #send(): void {
    const result = this.#sender.send(this.#fd);
    this.#stall.onProgress();
    this.#looked = false;
    if (result === -Errno.EAGAIN) {
      this.#waits.waitOut(this.#fd);
    } else if (result < 0) {
      this.#onLost(describeErrno(-result).text);
    }
  }

  #receive(): void {
    const result = this.#reader.receive(this.#fd);
    this.#stall.onProgress();
    this.#looked = false;
    this.#more = result === ReceiveResult.MORE;
    if (this.#phase !== Phase.READY) {
      return;
    }
    if (result === ReceiveResult.VIOLATED) {
      this.#break();
    } else if (this.#parser.shuttingDown) {
      this.#onLost('the server is shutting down');
    } else if (result === ReceiveResult.CLOSED) {
      this.#onLost('the server closed it');
    } else if (result < 0) {
      this.#onLost(describeErrno(-result).text);
    }
  }

  /** The connection broke by itself. */
  #onLost(reason: string): void {
    this.#disconnect();
    const answered = this.#clients.completed !== this.#completedBefore;
    this.#completedBefore = this.#clients.completed;
    this.#times.onLost(performance.now(), answered);
    this.#reporter.onLost(reason);
    if (this.#spec.reconnectDelayMs === 0) {
      this.#giveUp();
    } else if (answered) {
      this.#connect();
    } else {
      this.#waitOrGiveUp();
    }
  }

  #break(): void {
    this.#reporter.onBroken(this.#parser.violation);
    this.#disconnect();
    this.#phase = Phase.BROKEN;
    this.#clients.eachHeld(this.#refuse);
  }

  /** Nobody is connected any more; all requests are held. */
  #disconnect(): void {
    if (this.#fd >= 0) {
      this.#waits.forget();
      closeSocket(this.#fd);
      this.#fd = -1;
    }
    this.#phase = Phase.DOWN;
    this.#parser.stop();
    this.#sender.reset();
    this.#clients.holdAll();
  }

  #connectAnew(): void {
    this.#times.beginFirst(performance.now());
    this.#connect();
  }

  #connect(): void {
    this.#phase = Phase.CONNECTING;
    this.#connector.start(Math.max(1, this.#times.holdUntilMs - performance.now()));
  }

  /** A request came and nobody is connected: one attempt for it, unless the last one failed just now. */
  #tryOnce(id: number): void {
    if (this.#times.beginOnce(performance.now())) {
      this.#connect();
    } else {
      this.#clients.end(id, -Errno.EIO);
    }
  }

  #checkTime(now: number): void {
    if (now >= this.#times.holdUntilMs) {
      this.#connector.abort();
      this.#times.onOver(now);
      this.#giveUp();
    } else if (this.#phase === Phase.WAITING && now >= this.#times.retryAtMs) {
      this.#connect();
    }
  }

  #giveUp(): void {
    this.#reporter.onGaveUp();
    this.#phase = Phase.DOWN;
    this.#clients.eachHeld(this.#refuse);
  }

  #close(): void {
    this.#closed = true;
    this.#reporter.onClosed();
    if (this.#phase === Phase.READY && !this.#parser.isInMiddle && this.#clients.onWire === 0) {
      const { structured, allocationContext } = this.#parser;
      this.#waits.forget();
      this.#parked.park({ fd: this.#fd, structuredReplies: structured, allocationContext });
      this.#fd = -1;
    }
    this.#disconnect();
    this.#connector.close();
    this.#reactor.remove(this.#source);
    this.#sender.close();
    this.#reader.close();
    if (!this.#spec.multipleConnections) {
      shared.delete(this.#spec.key);
      this.#parked.unclaim();
    }
  }
}
