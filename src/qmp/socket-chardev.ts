/**
 * A socket character device, as QEMU has it: it listens, or connects, and gives its one front-end (a monitor)
 * one connection at a time; further clients wait for their turn.
 */
import { once } from 'node:events';
import { lstatSync, unlinkSync } from 'node:fs';
import { createConnection, createServer, type Server, type Socket } from 'node:net';
import { dirname, resolve } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import { errorMessage, VduseError } from '../base/errors.js';
import { type Logger, silentLogger } from '../base/log.js';

export type SocketAddress =
  | { readonly type: 'unix'; readonly path: string }
  | { readonly type: 'inet'; readonly host: string; readonly port: number };

export interface SocketChardevOptions {
  readonly id: string;
  readonly address: SocketAddress;
  /** Listens for clients; otherwise connects once. */
  readonly server: boolean;
  readonly logger?: Logger;
}

/** What a front-end makes of a connection. */
export interface ChardevSession {
  /** Never rejects. */
  readonly ended: Promise<void>;
  close(): Promise<void>;
}

export interface ChardevFrontEnd {
  onConnection(socket: Socket): ChardevSession;
}

/** sockaddr_un has room for 107 bytes and the end of the text. */
const UNIX_PATH_BYTES_MAX = 107;
/** Clients that wait while another one is served. */
const WAITING_CLIENTS_MAX = 16;

export class SocketChardev {
  readonly id: string;
  readonly #address: SocketAddress;
  readonly #isServer: boolean;
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
    this.#address = address.type === 'unix' ? { type: 'unix', path: resolve(address.path) } : address;
    this.#isServer = options.server;
    this.#logger = options.logger ?? silentLogger;
    this.#connected = new Promise((report) => {
      this.#reportConnected = report;
    });
  }

  /** Listens, or connects. Throws what the system says, and BUSY when somebody listens at the path already. */
  static async open(options: SocketChardevOptions): Promise<SocketChardev> {
    const chardev = new SocketChardev(options);
    await (options.server ? chardev.#listen() : chardev.#connect());
    return chardev;
  }

  get isAttached(): boolean {
    return this.#frontEnd !== undefined;
  }

  /** QEMU's description, such as `disconnected:unix:/run/qmp.sock,server=on`. */
  get filename(): string {
    const server = this.#isServer ? ',server=on' : '';
    const socket = this.#current?.socket ?? this.#waiting[0];
    const state = socket === undefined ? 'disconnected:' : '';
    if (this.#address.type === 'unix') {
      return `${state}unix:${this.#address.path}${server}`;
    }
    const bound = this.#server?.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : this.#address.port;
    const host = this.#address.host.includes(':') ? `[${this.#address.host}]` : this.#address.host;
    const peer = socket === undefined ? '' : ` <-> ${socket.remoteAddress}:${socket.remotePort}`;
    return `${state}tcp:${host}:${port}${server}${peer}`;
  }

  /** Settles at the first connection. */
  get connected(): Promise<void> {
    return this.#connected;
  }

  /** Claims the device for a front-end, which gets connections once serve() was called. Throws BUSY. */
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

  /** Ends the connection and takes no further one; removes the socket's file. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
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
    });
  }

  #accept(socket: Socket): void {
    // Whoever serves the connection sees its end; an error before that is nobody's.
    socket.on('error', () => undefined);
    if (this.#closed || this.#waiting.length === WAITING_CLIENTS_MAX) {
      socket.destroy();
      return;
    }
    this.#waiting.push(socket);
    this.#reportConnected();
    this.#serveNext();
  }

  async #listen(): Promise<void> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true });
    server.on('connection', (socket) => this.#accept(socket));
    const address = this.#address;
    const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`;
    try {
      if (address.type === 'unix') {
        await claimPath(address.path);
        listenPrivately(server, address.path);
      } else {
        server.listen(address.port, address.host);
      }
      await once(server, 'listening');
    } catch (error) {
      throw socketError(`Failed to bind socket to ${where}`, error);
    }
    // Without this a lack of descriptors for one more client would end the process.
    server.on('error', (error) => this.#logger.warn(`chardev ${this.id}: ${errorMessage(error)}`));
    this.#server = server;
  }

  async #connect(): Promise<void> {
    const address = this.#address;
    const [where, socket] =
      address.type === 'unix'
        ? [`'${address.path}'`, createConnection({ path: address.path, allowHalfOpen: true })]
        : [
            `'${address.host}:${address.port}'`,
            createConnection({ host: address.host, port: address.port, allowHalfOpen: true }),
          ];
    try {
      await once(socket, 'connect');
    } catch (error) {
      throw socketError(`Failed to connect to ${where}`, error);
    }
    socket.pause();
    this.#accept(socket);
  }
}

/** Whoever reaches the socket may open files as this process: nobody but its user may, from the first moment on. */
function listenPrivately(server: Server, path: string): void {
  const umask = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(umask);
  }
}

/** Removes a socket that a process left behind. Throws when it is something else, or somebody listens at it. */
async function claimPath(path: string): Promise<void> {
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    throw new VduseError('INVALID_ARGUMENT', `UNIX socket path '${path}' is too long`, {
      hint: `Path must be less than ${UNIX_PATH_BYTES_MAX + 1} bytes`,
    });
  }
  // libuv tells a missing directory as a lack of permission.
  lstatSync(dirname(path));
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) {
    return;
  }
  if (!found.isSocket()) {
    throw new VduseError('ALREADY_EXISTS', `Failed to bind socket to ${path}: a file is in the way`, {
      hint: 'it is not a socket, so it is not removed',
    });
  }
  if (await isListening(path)) {
    throw new VduseError('BUSY', `Failed to bind socket to ${path}: another process listens there`);
  }
  unlinkSync(path);
}

async function isListening(path: string): Promise<boolean> {
  const probe = createConnection(path);
  try {
    await once(probe, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    probe.destroy();
  }
}

function socketError(what: string, error: unknown): VduseError {
  if (error instanceof VduseError) {
    return error;
  }
  const errno = (error as NodeJS.ErrnoException).errno;
  const text = errno === undefined ? undefined : getSystemErrorMap().get(errno)?.[1];
  const reason = text === undefined ? errorMessage(error) : text[0].toUpperCase() + text.slice(1);
  return new VduseError('SYSTEM_CALL', `${what}: ${reason}`, { cause: error });
}
