/**
 * A socket character device, as QEMU has it: it listens, or connects, and gives its one front-end (a monitor)
 * one connection at a time; further clients wait for their turn.
 */
import { createServer, type Server, type Socket } from 'node:net';
import { resolve } from 'node:path';
import { errorMessage, VduseError } from '../base/errors.js';
import { type Logger, silentLogger } from '../base/log.js';
import type { Chardev, ChardevFrontEnd, ChardevSession } from './chardev.js';
import { connectTo, describeAddress, listenAt, type SocketAddress } from './socket-address.js';

export interface SocketChardevOptions {
  readonly id: string;
  readonly address: SocketAddress;
  /** Listens for clients; otherwise connects. */
  readonly server: boolean;
  /** Of one that connects: milliseconds until it tries again after a failure or the end of a connection; 0: never. */
  readonly reconnectMs?: number;
  readonly logger?: Logger;
}

/** Clients that wait while another one is served. */
const WAITING_CLIENTS_MAX = 16;

export class SocketChardev implements Chardev {
  readonly id: string;
  readonly #address: SocketAddress;
  readonly #isServer: boolean;
  readonly #reconnectMs: number;
  #reconnectTimer: NodeJS.Timeout | undefined;
  readonly #logger: Logger;
  #server: Server | undefined;
  #waiting: Socket[] = [];
  #frontEnd: ChardevFrontEnd | undefined;
  #serving = false;
  #current: { readonly socket: Socket; readonly session: ChardevSession } | undefined;
  #closed = false;
  readonly #connected: Promise<void>;
  #reportConnected: () => void = () => undefined;

  private constructor(options: SocketChardevOptions) {
    this.id = options.id;
    const { address } = options;
    const isPath = address.type === 'unix' && !address.path.startsWith('\0');
    this.#address = isPath ? { type: 'unix', path: resolve(address.path) } : address;
    this.#reconnectMs = options.server ? 0 : (options.reconnectMs ?? 0);
    this.#isServer = options.server;
    this.#logger = options.logger ?? silentLogger;
    this.#connected = new Promise((report) => {
      this.#reportConnected = report;
    });
  }

  /** Listens, or connects. Throws what the system says, and BUSY when somebody listens at the path already. */
  static async open(options: SocketChardevOptions): Promise<SocketChardev> {
    const chardev = new SocketChardev(options);
    if (options.server) {
      await chardev.#listen();
    } else if (chardev.#reconnectMs > 0) {
      // As in QEMU: whoever is to be reached may come later.
      void chardev.#tryToConnect();
    } else {
      await chardev.#connect();
    }
    return chardev;
  }

  get isAttached(): boolean {
    return this.#frontEnd !== undefined;
  }

  get filename(): string {
    const server = this.#isServer ? ',server=on' : '';
    const socket = this.#current?.socket ?? this.#waiting[0];
    const state = socket === undefined ? 'disconnected:' : '';
    if (this.#address.type !== 'inet') {
      return `${state}${describeAddress(this.#address)}${server}`;
    }
    const bound = this.#server?.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : this.#address.port;
    const peer = socket === undefined ? '' : ` <-> ${socket.remoteAddress}:${socket.remotePort}`;
    return `${state}${describeAddress({ ...this.#address, port })}${server}${peer}`;
  }

  get connected(): Promise<void> {
    return this.#connected;
  }

  attach(frontEnd: ChardevFrontEnd): void {
    if (this.#frontEnd !== undefined) {
      throw new VduseError('BUSY', `Device '${this.id}' is in use`);
    }
    this.#frontEnd = frontEnd;
  }

  serve(): void {
    this.#serving = true;
    this.#serveNext();
  }

  /** Removes the socket's file, too. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#reportConnected();
    clearTimeout(this.#reconnectTimer);
    for (const socket of this.#waiting.splice(0)) {
      socket.destroy();
    }
    const server = this.#server;
    this.#server = undefined;
    // Closing the listening socket removes its file; connections stay open until they are closed below.
    const ended =
      server === undefined ? undefined : new Promise<void>((report) => server.close(() => report()));
    await this.#current?.session.close();
    await ended;
  }

  #serveNext(): void {
    if (!this.#serving || this.#frontEnd === undefined || this.#current !== undefined || this.#closed) {
      return;
    }
    const socket = this.#waiting.shift();
    if (socket === undefined) {
      return;
    }
    const session = this.#frontEnd.onConnection(socket);
    this.#current = { socket, session };
    void session.ended.then(() => {
      this.#current = undefined;
      this.#serveNext();
      this.#reconnectLater();
    });
  }

  #accept(socket: Socket): void {
    // Whoever serves the connection sees its end; an error before that is nobody's.
    socket.on('error', () => undefined);
    if (this.#closed) {
      socket.destroy();
      return;
    }
    if (this.#waiting.length === WAITING_CLIENTS_MAX) {
      this.#frontEnd?.refuse(socket);
      socket.destroySoon();
      return;
    }
    this.#waiting.push(socket);
    this.#reportConnected();
    this.#serveNext();
  }

  async #listen(): Promise<void> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
    server.on('connection', (socket) => this.#accept(socket));
    await listenAt(server, this.#address);
    // Without this a lack of descriptors for one more client would end the process.
    server.on('error', (error) => this.#logger.warn(`chardev ${this.id}: ${errorMessage(error)}`));
    this.#server = server;
  }

  async #connect(): Promise<void> {
    const socket = await connectTo(this.#address);
    socket.pause();
    this.#accept(socket);
  }

  async #tryToConnect(): Promise<void> {
    try {
      await this.#connect();
    } catch (error) {
      this.#logger.debug(`chardev ${this.id}: ${errorMessage(error)}`);
      this.#reconnectLater();
    }
  }

  #reconnectLater(): void {
    if (this.#reconnectMs > 0 && !this.#closed) {
      this.#reconnectTimer = setTimeout(() => void this.#tryToConnect(), this.#reconnectMs);
    }
  }
}
