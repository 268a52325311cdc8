/** The daemon's NBD server, and the export type `nbd`: block nodes that it serves. */
import { errorMessage, VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import type { TlsCredentials } from '../base/tls-credentials.js';
import type { BlockNode } from '../block/node.js';
import type { DeviceStatistics, SharedDeviceState } from '../device/statistics.js';
import { nbdLimits } from '../nbd/nbd-limits.js';
import { NbdServer } from '../nbd/nbd-server.js';
import type { NbdTls } from '../nbd/tls-entrance.js';
import type { SocketAddress } from '../qmp/socket-address.js';
import type { BlockExport, NbdExportOptions } from './block-export.js';
import { NodeNbdExport } from './node-nbd-export.js';
import type { NbdServerRequest } from './options/nbd-options.js';
import { isLoopback } from './options/socket-address.js';

/** Clients when the user wants no bound. */
const connectionsMax = 1000;
/** How long the end of an export waits for the node's requests, twice: once more after it cancelled them. */
const drainTimeoutMs = 10_000;

class NbdBlockExport implements BlockExport {
  readonly id: string;
  readonly type = 'nbd';
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly description: string;
  readonly closed: Promise<void>;
  readonly #name: string;
  readonly #server: NbdServer;
  readonly #target: NodeNbdExport;
  #closing: Promise<void> | undefined;
  #reportClosed: () => void = () => undefined;

  constructor(options: NbdExportOptions, parts: { server: NbdServer; target: NodeNbdExport; name: string }) {
    this.id = options.id;
    this.node = options.node;
    this.writable = options.writable;
    this.description = `NBD export '${parts.name}'`;
    this.#name = parts.name;
    this.#server = parts.server;
    this.#target = parts.target;
    this.closed = new Promise((report) => {
      this.#reportClosed = report;
    });
  }

  get shuttingDown(): boolean {
    return this.#closing !== undefined;
  }

  get counters(): SharedDeviceState {
    return this.#target.counters;
  }

  get statistics(): DeviceStatistics {
    return this.#target.statistics;
  }

  /** Clients go by the size that they saw when they connected; the next ones see the new one. */
  resized(): void {}

  drained(change: () => Promise<void>, timeoutMs?: number): Promise<void> {
    return this.#target.drained(change, timeoutMs);
  }

  close(options: { readonly hard: boolean }): Promise<void> {
    if (this.#closing !== undefined) {
      return this.#closing;
    }
    const clients = this.#server.clientCount(this.#name);
    if (!options.hard && clients > 0) {
      return Promise.reject(
        new VduseError('BUSY', `export '${this.id}' is still in use: ${clients} NBD clients are connected`),
      );
    }
    this.#closing = this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      // A client is gone only when what it asked for has ended: requests that do not end are cancelled meanwhile.
      const [, ended] = await Promise.allSettled([
        this.#server.removeExport(this.#name),
        this.#target.close(drainTimeoutMs),
      ]);
      if (ended.status === 'rejected') {
        throw ended.reason;
      }
    } finally {
      this.#reportClosed();
    }
  }
}

/** The objects to which a server's options refer by id. */
export interface NbdServerObjects {
  /** Throws NOT_FOUND. */
  readonly tlsCredentials: (id: string) => TlsCredentials;
  /** Whether an authorization object lets somebody in. Throws when that can't be told. */
  readonly authorize: (id: string, name: string) => boolean;
}

export class NbdService {
  readonly #logger: Logger;
  readonly #objects: NbdServerObjects;
  #server: NbdServer | undefined;

  constructor(objects: NbdServerObjects, logger: Logger) {
    this.#objects = objects;
    this.#logger = logger;
  }

  get isRunning(): boolean {
    return this.#server !== undefined;
  }

  /** Throws ALREADY_EXISTS while one runs. */
  async start(request: NbdServerRequest): Promise<void> {
    if (this.#server !== undefined) {
      throw new VduseError('ALREADY_EXISTS', 'NBD server already running');
    }
    const { maxConnections = 0 } = request;
    const tls = this.#tls(request);
    const server = new NbdServer({
      logger: this.#logger,
      limits: { connectionsMax: maxConnections === 0 ? connectionsMax : maxConnections },
      ...(tls === undefined ? {} : { tls }),
    });
    try {
      const where = await listen(server, request.address);
      this.#logger.info(`NBD server: ${where}${tls === undefined ? '' : ', TLS only'}`);
    } catch (error) {
      await server.close();
      throw error;
    }
    this.#server = server;
  }

  /** Throws NOT_FOUND, or INVALID_ARGUMENT for credentials that do not do. */
  #tls({ address, tlsCreds, tlsAuthz }: NbdServerRequest): NbdTls | undefined {
    if (tlsCreds === undefined) {
      return undefined;
    }
    const credentials = this.#objects.tlsCredentials(tlsCreds);
    const knowsClients = credentials.kind === 'psk' || credentials.verifyPeer;
    if (address.type === 'inet' && !isLoopback(address.host) && !knowsClients) {
      throw new VduseError('NOT_SUPPORTED', `NBD server: host '${address.host}' is not a loopback address`, {
        hint: `whoever reaches the server can read and write: let '${tlsCreds}' have verify-peer=on`,
      });
    }
    // Looked up for each client, as QEMU does: rules change while the server runs.
    const authorize = (id: string) => (name: string) => this.#objects.authorize(id, name);
    return { credentials, ...(tlsAuthz === undefined ? {} : { authorize: authorize(tlsAuthz) }) };
  }

  /** Throws NOT_FOUND. */
  checkRunning(): void {
    this.#running();
  }

  /** Ends the server. Its exports have ended. */
  async stop(): Promise<void> {
    const server = this.#running();
    this.#server = undefined;
    await server.close();
  }

  /** Makes an export of the type `nbd`. The node stays open, and its caller's. */
  async createExport(options: NbdExportOptions): Promise<BlockExport> {
    const server = this.#running();
    const { node, writable, name = node.nodeName, description, bitmaps = [], onIoError } = options;
    for (const [what, text] of Object.entries({ 'export name': name, description })) {
      if (text !== undefined && Buffer.byteLength(text) > nbdLimits.stringBytesMax) {
        throw new VduseError('INVALID_ARGUMENT', `${what} '${text}' too long`);
      }
    }
    if (server.hasExport(name)) {
      throw new VduseError('ALREADY_EXISTS', `NBD server already has export named '${name}'`);
    }
    if (bitmaps.length > 0) {
      // There are no dirty bitmaps, so no name is one's.
      throw new VduseError('NOT_FOUND', `Bitmap '${bitmaps[0]}' is not found`);
    }
    const target = new NodeNbdExport(node, { writable, ...(onIoError === undefined ? {} : { onIoError }) });
    try {
      server.addExport({ name, target, ...(description === undefined ? {} : { description }) });
    } catch (error) {
      await target.close(drainTimeoutMs).catch((closing: unknown) => {
        this.#logger.error(errorMessage(closing));
      });
      throw error;
    }
    return new NbdBlockExport(options, { server, target, name });
  }

  #running(): NbdServer {
    if (this.#server === undefined) {
      throw new VduseError('NOT_FOUND', 'NBD server not running', {
        hint: 'start it before: nbd-server-start, or --nbd-server in front of --export',
      });
    }
    return this.#server;
  }
}

/** Returns where clients find the server. */
async function listen(server: NbdServer, address: SocketAddress): Promise<string> {
  if (address.type === 'fd') {
    await server.listenOnFd(address.fd);
    return `descriptor ${address.fd}`;
  }
  const { type } = address;
  const bound = await server.listen(
    type === 'unix' ? address : { type: 'tcp', host: address.host, port: address.port },
  );
  return bound.type === 'unix'
    ? `unix:${bound.path.replaceAll('\0', '@')}`
    : `tcp:${bound.host}:${bound.port}`;
}
