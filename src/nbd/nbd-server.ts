/**
 * The NBD server: named exports, the sockets that it listens on, and its clients. It knows nothing of what an
 * export is made of (nbd-export.ts), and a client can do no more to another one than to ask the same export for
 * something.
 */
import { once } from 'node:events';
import { lstatSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { dirname, resolve } from 'node:path';
import { errorMessage, VduseError } from '../base/errors.js';
import { type Logger, silentLogger } from '../base/log.js';
import { listenHint, systemReason } from '../base/socket-errors.js';
import { removeStaleSocket, UnixListener } from '../native/unix-socket.js';
import { StayAwake } from './awake.js';
import { type Clock, type ConnectionOptions, NbdConnection } from './connection.js';
import { defaultClientLimits, type NbdClientLimits } from './nbd-limits.js';
import { receiveDecrypted, receiveInto } from './receiving-socket.js';
import { type NbdExportOptions, type ServedExport, serveExport } from './served-export.js';
import { type NbdTls, TlsEntrance } from './tls-entrance.js';

/** Where to listen. Whoever can connect can read and write, unless TLS asks who it is. */
export type NbdAddress =
  /** A socket file, for this user only; after a NUL byte, an abstract name. */
  | { readonly type: 'unix'; readonly path: string }
  /** Only this machine reaches it, unless `host` says otherwise. Port 0 is one that is free. */
  | { readonly type: 'tcp'; readonly port: number; readonly host?: string };

export interface NbdServerOptions {
  readonly limits?: Partial<NbdClientLimits>;
  readonly logger?: Logger;
  /** Microseconds for which the event loop stays awake after a reply, where clients are that fast. 0, the default: none. */
  readonly pollUs?: number;
  /** Clients must use TLS, and learn nothing before. */
  readonly tls?: NbdTls;
}

type Client = NbdConnection | TlsEntrance;

/** IANA's port for NBD. */
export const NBD_PORT = 10809;
/** sockaddr_un has room for 107 bytes and the end of the text. */
const UNIX_PATH_BYTES_MAX = 107;
const TICK_MS_MAX = 1000;

export class NbdServer {
  readonly #logger: Logger;
  readonly #limits: NbdClientLimits;
  readonly #exports = new Map<string, ServedExport>();
  readonly #listeners = new Set<Server>();
  /** Those on their way in included. */
  readonly #connections = new Set<Client>();
  readonly #tls: NbdTls | undefined;
  readonly #awake: StayAwake;
  readonly #clock = { nowMs: 0 } satisfies Clock;
  #timer: NodeJS.Timeout | undefined;
  #closing: Promise<void> | undefined;

  /** Throws INVALID_ARGUMENT for credentials that are not a server's. */
  constructor(options: NbdServerOptions = {}) {
    checkTls(options.tls);
    this.#tls = options.tls;
    this.#logger = options.logger ?? silentLogger;
    this.#awake = new StayAwake(options.pollUs ?? 0);
    this.#limits = { ...defaultClientLimits, ...options.limits };
  }

  /** Clients of one export, or all of them, those that still negotiate included. */
  clientCount(name?: string): number {
    return this.#clients(name).length;
  }

  hasExport(name: string): boolean {
    return this.#exports.has(name);
  }

  /** Throws ALREADY_EXISTS, and INVALID_ARGUMENT for an export that breaks the rules of nbd-export.ts. */
  addExport(options: NbdExportOptions): void {
    if (this.#exports.has(options.name)) {
      throw new VduseError('ALREADY_EXISTS', `NBD export ${JSON.stringify(options.name)} exists already`);
    }
    this.#exports.set(options.name, serveExport(options));
  }

  /**
   * New clients find it no more; those that it has are told that the server shuts down, and disconnected. Settles
   * when nothing uses the export any more.
   */
  async removeExport(name: string): Promise<void> {
    const clients = this.#clients(name);
    if (!this.#exports.delete(name)) {
      throw new VduseError('NOT_FOUND', `there is no NBD export ${JSON.stringify(name)}`);
    }
    await this.#end(clients);
  }

  /** Listens; may be called for several addresses. Returns the address, with the port that was found for 0. */
  async listen(address: NbdAddress): Promise<NbdAddress> {
    if (address.type === 'unix') {
      const { path } = address;
      const isAbstract = path.startsWith('\0');
      const where = isAbstract ? path.replaceAll('\0', '@') : resolve(path);
      await this.#listen(where, (server) =>
        isAbstract ? server.listen({ fd: new UnixListener(where).fd }) : listenPrivately(server, where),
      );
      return address;
    }
    const host = address.host ?? '127.0.0.1';
    const server = await this.#listen(
      `${host}:${address.port}`,
      (opened) => opened.listen(address.port, host),
      address.port,
    );
    const bound = server.address();
    const port = typeof bound === 'object' && bound !== null ? bound.port : address.port;
    return { type: 'tcp', port, host };
  }

  /** Serves a socket that listens already, handed to the process by who started it. */
  async listenOnFd(fd: number): Promise<void> {
    await this.#listen(`descriptor ${fd}`, (server) => server.listen({ fd }));
  }

  async #listen(where: string, start: (server: Server) => unknown, port?: number): Promise<Server> {
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
    try {
      start(server);
      await once(server, 'listening');
    } catch (error) {
      throw cannotListen(where, port, error);
    }
    if (this.#closing !== undefined) {
      server.close();
      throw new VduseError('ABORTED', `listen on ${where}: the server was closed meanwhile`);
    }
    // Without this a lack of descriptors for one more client would end the process.
    server.on('error', (error) => this.#logger.warn(`NBD server at ${where}: ${errorMessage(error)}`));
    server.on('connection', (socket) => this.#accept(socket));
    this.#listeners.add(server);
    this.#logger.debug(`NBD server listens at ${where}`);
    return server;
  }

  /**
   * Listens no more, answers what is under way, and disconnects everybody. Settles when no export is in use any
   * more. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const listeners = [...this.#listeners];
    this.#listeners.clear();
    // Closing the listening socket removes its file.
    const ended = listeners.map((server) => new Promise<void>((report) => server.close(() => report())));
    await this.#end([...this.#connections]);
    await Promise.all(ended);
  }

  /** Lets clients go, for a while politely. */
  async #end(clients: readonly Client[]): Promise<void> {
    for (const client of clients) {
      client.shutDown();
    }
    const timer = setTimeout(() => {
      for (const client of clients) {
        client.destroy();
      }
    }, this.#limits.closeTimeoutMs);
    await Promise.all(clients.map((client) => client.closed));
    clearTimeout(timer);
  }

  #clients(name: string | undefined): Client[] {
    const connections = [...this.#connections];
    if (name === undefined) {
      return connections;
    }
    const served = this.#exports.get(name);
    return served === undefined ? [] : connections.filter((client) => client.served === served);
  }

  #accept(socket: Socket): void {
    if (this.#connections.size >= this.#limits.connectionsMax) {
      // Those that have chosen an export stay. One that never chooses must not keep others out.
      const negotiating = this.#clients(undefined).find(
        (client) => client.served === undefined && !client.isDestroyed,
      );
      if (negotiating === undefined) {
        this.#logger.warn(`NBD client turned away: there are ${this.#limits.connectionsMax} already`);
        socket.destroy();
        return;
      }
      negotiating.destroy(`there are ${this.#limits.connectionsMax}, and it has not chosen an export`);
    }
    if (this.#tls === undefined) {
      this.#connect(socket, { receive: (reader) => receiveInto(socket, reader) });
    } else {
      this.#secure(socket, this.#tls);
    }
  }

  #secure(socket: Socket, tls: NbdTls): void {
    const entrance: TlsEntrance = new TlsEntrance({
      socket,
      tls,
      limits: this.#limits,
      clock: this.#clock,
      logger: this.#logger,
      onSecured: (secured, clientFlags) =>
        this.#connect(secured, {
          receive: (reader) => receiveDecrypted(secured, reader),
          secured: { clientFlags, openedMs: entrance.openedMs },
        }),
    });
    this.#keep(entrance);
  }

  #connect(socket: Socket, how: Pick<ConnectionOptions, 'receive' | 'secured'>): void {
    try {
      const connection = new NbdConnection({
        ...how,
        exports: this.#exports,
        limits: this.#limits,
        clock: this.#clock,
        awake: this.#awake,
        logger: this.#logger,
      });
      this.#keep(connection);
    } catch (error) {
      this.#logger.warn(`NBD client turned away: ${errorMessage(error)}`);
      socket.destroy();
    }
  }

  #keep(connection: Client): void {
    this.#connections.add(connection);
    this.#timer ??= setInterval(() => this.#tick(), this.#tickMs);
    void connection.closed.then(() => this.#forget(connection));
  }

  #forget(connection: Client): void {
    this.#connections.delete(connection);
    if (this.#connections.size === 0) {
      clearInterval(this.#timer);
      this.#timer = undefined;
    }
  }

  /** One timer for all clients: a request arms none. */
  #tick(): void {
    this.#clock.nowMs += this.#tickMs;
    for (const connection of this.#connections) {
      connection.checkTime();
    }
  }

  /** Fine enough for the shortest of the timeouts. */
  get #tickMs(): number {
    const { handshakeTimeoutMs, stallTimeoutMs } = this.#limits;
    return Math.max(10, Math.min(TICK_MS_MAX, handshakeTimeoutMs / 4, stallTimeoutMs / 4));
  }
}

function checkTls(tls: NbdTls | undefined): void {
  if (tls === undefined) {
    return;
  }
  const { endpoint, kind, verifyPeer } = tls.credentials;
  if (endpoint !== 'server') {
    throw new VduseError('INVALID_ARGUMENT', 'Expected TLS credentials for a server endpoint', {
      hint: 'add endpoint=server to them',
    });
  }
  if (tls.authorize !== undefined && (kind !== 'x509' || !verifyPeer)) {
    // QEMU lets everybody in who comes through such credentials, whatever the list says.
    throw new VduseError('INVALID_ARGUMENT', 'these TLS credentials tell no name that could be authorized', {
      hint: 'use tls-creds-x509 with verify-peer=on, or leave tls-authz out',
    });
  }
}

/** Whoever reaches the socket may read and write the disk: nobody but its user may, from the first moment on. */
function listenPrivately(server: Server, path: string): void {
  if (Buffer.byteLength(path) > UNIX_PATH_BYTES_MAX) {
    throw new VduseError('INVALID_ARGUMENT', `the path is longer than ${UNIX_PATH_BYTES_MAX} bytes`, {
      hint: 'Choose a shorter one, for example below /run.',
    });
  }
  // libuv tells a missing directory as a lack of permission.
  lstatSync(dirname(path));
  removeStaleSocket(path);
  const umask = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(umask);
  }
}

/** An error of the path's own begins with the path. */
function cannotListen(where: string, port: number | undefined, error: unknown): VduseError {
  const what = `NBD server at ${where}`;
  if (!(error instanceof VduseError)) {
    return new VduseError('SYSTEM_CALL', `${what}: ${systemReason(error)}`, {
      cause: error,
      hint: listenHint(port ?? where, error),
    });
  }
  const { code, message, hint } = error;
  const why = message.startsWith(`${where}: `) ? message.slice(where.length + 2) : message;
  return new VduseError(code, `${what}: ${why}`, { cause: error, hint });
}
