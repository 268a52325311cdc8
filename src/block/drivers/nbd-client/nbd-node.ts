/** The block driver `nbd`: opens an export of an NBD server. */
import { setTimeout as sleep } from 'node:timers/promises';
import { errorMessage, VduseError } from '../../../base/errors.js';
import type { Logger } from '../../../base/log.js';
import { Command, Magic, TransmissionFlag, writeU16, writeU32 } from '../../../base/nbd-protocol.js';
import { connectHint } from '../../../base/socket-errors.js';
import { writeFd } from '../../../native/fd.js';
import { closeSocket } from '../../../native/stream-socket.js';
import { acquireEventLoopReactor, releaseEventLoopReactor } from '../../../reactor/event-loop-reactor.js';
import type { NbdEngineSpec } from '../../engine.js';
import type { BlockFeatures, BlockLimits, BlockNode, BlockServices, NbdNodeOptions } from '../../node.js';
import { ConnectionLog } from './connection-reports.js';
import { type ConnectTarget, NbdConnector } from './connector.js';
import type { NbdExportInfo } from './handshake.js';
import { adoptDescriptor, nbdUri, resolveAddress } from './nbd-address.js';
import { ParkedConnections } from './parked-connections.js';
import { TlsRelay } from './tls-relay.js';
import { requestBytes } from './wire-requests.js';

/** One attempt to connect and to shake hands. */
const attemptMs = 10_000;
/** Between attempts, while open-timeout is not over. */
const retryMs = 250;
/** How often the main thread's reactor is asked to look at the clock during an attempt. */
const clockMs = 100;
const sectorBytes = 512;
/** The protocol's bound on strings. */
const exportNameBytesMax = 4096;

let nextKey = 1;

interface OpenedConnection {
  readonly fd: number;
  readonly info: NbdExportInfo;
}

/** Throws what keeps the export from being opened: NOT_FOUND, PERMISSION_DENIED, PROTOCOL, TIMEOUT, SYSTEM_CALL ... */
export async function openNbdNode(
  options: NbdNodeOptions,
  services: Pick<BlockServices, 'tlsCredentials' | 'logger'>,
): Promise<BlockNode> {
  const { server, exportName = '' } = options;
  if (Buffer.byteLength(exportName) > exportNameBytesMax) {
    throw new VduseError('INVALID_ARGUMENT', 'export name too long to send to server');
  }
  const uri = nbdUri(server, exportName);
  let relay: TlsRelay | undefined;
  try {
    if (options.tlsCreds !== undefined) {
      const credentials = services.tlsCredentials?.(options.tlsCreds);
      if (credentials === undefined) {
        throw new VduseError('NOT_FOUND', `No TLS credentials with id '${options.tlsCreds}'`);
      }
      relay = new TlsRelay(server, { credentials, hostname: options.tlsHostname });
    }
    const { connection, target } = await connectUntil(options, { relay, logger: services.logger });
    try {
      return new NbdNode(options, { connection, target, relay, uri, logger: services.logger });
    } catch (error) {
      disconnect(connection.fd);
      throw error;
    }
  } catch (error) {
    relay?.close();
    throw openError(uri, error);
  }
}

function openError(uri: string, error: unknown): VduseError {
  const code = error instanceof VduseError ? error.code : 'SYSTEM_CALL';
  const hint = error instanceof VduseError ? error.hint : undefined;
  return new VduseError(code, `cannot open '${uri}': ${errorMessage(error)}`, {
    cause: error,
    hint: hint ?? connectHint(error),
  });
}

/** Tries until it succeeds or open-timeout is over, once at least. */
async function connectUntil(
  options: NbdNodeOptions,
  { relay, logger }: { relay: TlsRelay | undefined; logger: Logger },
): Promise<{ connection: OpenedConnection; target: ConnectTarget }> {
  const { server, exportName = '' } = options;
  const endMs = performance.now() + (server.type === 'fd' ? 0 : (options.openTimeout ?? 0) * 1000);
  for (let n = 0; ; n++) {
    try {
      const addresses = relay === undefined ? await resolveAddress(server) : [];
      const target = { addresses, relayFd: relay?.fd ?? -1, exportName };
      const fd = server.type === 'fd' && relay === undefined ? adoptDescriptor(server.fd) : undefined;
      return { connection: await connectOnce(target, { relay, fd }), target };
    } catch (error) {
      if (performance.now() + retryMs >= endMs) {
        throw error;
      }
      if (n === 0) {
        logger.info(
          { node: options.nodeName },
          `cannot open '${nbdUri(server, exportName)}' yet: ${errorMessage(error)}; trying for ${options.openTimeout} s (open-timeout)`,
        );
      }
      await sleep(retryMs);
    }
  }
}

/** `fd`: a socket that is connected already. */
function connectOnce(
  target: ConnectTarget,
  { relay, fd: connected }: { relay: TlsRelay | undefined; fd: number | undefined },
): Promise<OpenedConnection> {
  return new Promise((resolve, reject) => {
    const reactor = acquireEventLoopReactor();
    const clock = setInterval(() => reactor.wake(), clockMs);
    const finish = (): void => {
      clearInterval(clock);
      // Later: the connector calls from its midst.
      setImmediate(() => {
        connector.close();
        reactor.wake();
        releaseEventLoopReactor();
      });
    };
    const connector = new NbdConnector(reactor, target, {
      onConnected: (fd, info) => {
        finish();
        resolve({ fd, info });
      },
      onConnectFailed: (error) => {
        finish();
        // Behind a relay the connector only sees its end; why, the relay knows.
        reject(relay?.takeError() ?? error);
      },
    });
    if (connected === undefined) {
      connector.start(attemptMs);
    } else {
      connector.startOn(connected, attemptMs);
    }
    reactor.wake();
  });
}

/** "Terminating the transmission phase": so that the server need not wonder. */
function disconnect(fd: number): void {
  const request = new Uint8Array(requestBytes);
  writeU32(request, 0, Magic.request);
  writeU16(request, 6, Command.DISC);
  writeFd(fd, request);
  closeSocket(fd);
}

interface NodeParts {
  readonly connection: OpenedConnection;
  readonly target: ConnectTarget;
  readonly relay: TlsRelay | undefined;
  readonly uri: string;
  readonly logger: Logger;
}

class NbdNode implements BlockNode {
  readonly nodeName: string;
  readonly driver = 'nbd';
  /** None for a descriptor: nobody else can open that by its number. */
  readonly filename: string | undefined;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly detectZeroes;
  readonly features: BlockFeatures;
  readonly limits: BlockLimits;
  readonly size: number;
  readonly engine: NbdEngineSpec;
  readonly #parked = new ParkedConnections();
  readonly #relay: TlsRelay | undefined;
  readonly #log: ConnectionLog;
  #closed = false;

  constructor(options: NbdNodeOptions, { connection, target, relay, uri, logger }: NodeParts) {
    const { info } = connection;
    const unmap = options.discard === 'unmap';
    const isOnlyOnce = options.server.type === 'fd';
    const can = (flag: number): boolean => (info.flags & flag) !== 0;
    checkSize(info);
    this.nodeName = options.nodeName;
    this.filename = isOnlyOnce ? undefined : uri;
    this.readOnly = isReadOnly(options, info);
    this.cacheDirect = options.cache?.direct ?? false;
    this.cacheNoFlush = options.cache?.noFlush ?? false;
    this.detectZeroes = options.detectZeroes ?? 'off';
    this.size = info.size;
    this.#relay = relay;
    const writable = !this.readOnly;
    const unmaps = unmap && writable;
    this.features = {
      flush: can(TransmissionFlag.SEND_FLUSH),
      discard: unmaps && can(TransmissionFlag.SEND_TRIM),
      // Without NBD_CMD_WRITE_ZEROES zeroes are sent.
      writeZeroes: writable,
      writeZeroesMayUnmap: unmaps && can(TransmissionFlag.SEND_WRITE_ZEROES),
    };
    this.limits = blockLimits(info);
    this.engine = {
      kind: 'nbd',
      key: nextKey++,
      target,
      size: info.size,
      flags: info.flags,
      minimumBlockSize: info.minimumBlockSize,
      payloadBytesMax: info.payloadBytesMax,
      multipleConnections: can(TransmissionFlag.CAN_MULTI_CONN) && !isOnlyOnce,
      tellsAllocation: info.allocationContext !== undefined,
      reconnectDelayMs: isOnlyOnce ? 0 : (options.reconnectDelay ?? 0) * 1000,
      noFlush: this.cacheNoFlush,
      ignoreDiscard: !unmap,
      parked: this.#parked.buffer,
    };
    this.#parked.park({ fd: connection.fd, ...info });
    this.#log = new ConnectionLog({
      node: this.engine.key,
      nodeName: this.nodeName,
      uri,
      logger,
      reconnectDelayMs: this.engine.reconnectDelayMs,
      isOnlyOnce,
      explain: () => relay?.takeError()?.message,
    });
  }

  async resize(): Promise<void> {
    throw new VduseError('NOT_SUPPORTED', `cannot resize '${this.nodeName}': NBD has no resizing`, {
      hint: 'Resize the image on the server, then open the node again.',
    });
  }

  async close(): Promise<void> {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#log.close();
    for (let parked = this.#parked.take(); parked !== undefined; parked = this.#parked.take()) {
      disconnect(parked.fd);
    }
    this.#relay?.close();
  }
}

function checkSize({ size, minimumBlockSize }: NbdExportInfo): void {
  const block = Math.max(sectorBytes, minimumBlockSize);
  if (size % block !== 0) {
    throw new VduseError('IMAGE_INVALID', `its size of ${size} bytes is not a multiple of ${block}`, {
      hint: 'Grow the image on the server to whole blocks; for nbdkit: --filter=truncate round-up=512.',
    });
  }
}

function isReadOnly(options: NbdNodeOptions, { flags }: NbdExportInfo): boolean {
  const serverReadOnly = (flags & TransmissionFlag.READ_ONLY) !== 0;
  if (serverReadOnly && options.readOnly !== true && options.autoReadOnly !== true) {
    throw new VduseError('IMAGE_READ_ONLY', 'request for write access denied: the export is read-only', {
      hint: 'Open it with read-only=on (--read-only of a command) or auto-read-only=on.',
    });
  }
  return options.readOnly === true || serverReadOnly;
}

function blockLimits({ minimumBlockSize, preferredBlockSize, payloadBytesMax }: NbdExportInfo): BlockLimits {
  const requestAlignment = Math.max(sectorBytes, minimumBlockSize);
  const preferred = Math.max(requestAlignment, preferredBlockSize);
  return {
    requestAlignment,
    physicalBlockSize: Math.min(preferred, Math.max(requestAlignment, physicalBlockSizeMax)),
    optimalIoSize: preferred > physicalBlockSizeMax && preferred <= payloadBytesMax ? preferred : 0,
    discardAlignment: requestAlignment,
  };
}

/** A larger preference is a size for requests rather than a block. */
const physicalBlockSizeMax = 4096;
