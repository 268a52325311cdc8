/**
 * TLS for engines that know only sockets: they hand over one end of a socket pair, and on the main thread Node's TLS
 * takes what comes from it to the server, and back. The first bytes of the handshake are in the clear; once TLS is
 * up, the engine is told the server's greeting as if it had connected itself.
 */
import { connect as connectSocket, Socket as NetSocket, type Socket } from 'node:net';
import { pipeline } from 'node:stream';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { errorMessage, VduseError } from '../../../base/errors.js';
import { Bytes } from '../../../base/nbd-protocol.js';
import type { TlsCredentials } from '../../../base/tls-credentials.js';
import { closeFd } from '../../../native/fd.js';
import { socketPair } from '../../../native/unix-socket.js';
import { startTls } from './handshake.js';
import { adoptDescriptor, type NbdServerAddress } from './nbd-address.js';

/** From the connection to the end of the TLS handshake. */
const handshakeMs = 10_000;
/** How long connections may take to end when the node is closed. */
const lingerMs = 1000;

export interface TlsRelayOptions {
  readonly credentials: TlsCredentials;
  readonly hostname: string | undefined;
}

export class TlsRelay {
  /** Where engines write the number of a descriptor, four bytes, which is the relay's then. */
  readonly fd: number;
  readonly #server: NbdServerAddress;
  readonly #credentials: TlsCredentials;
  readonly #hostname: string | undefined;
  readonly #requests: Socket;
  readonly #open = new Set<Socket>();
  #partial = Buffer.alloc(0);
  #error: VduseError | undefined;
  /** The one connection that a descriptor is has been used. */
  #isHandedOver = false;
  #closed = false;

  /** Throws INVALID_ARGUMENT for credentials that a client of this server can't use. */
  constructor(server: NbdServerAddress, { credentials, hostname }: TlsRelayOptions) {
    this.#server = server;
    this.#credentials = credentials;
    this.#hostname = hostname ?? (server.type === 'inet' ? server.host : undefined);
    if (credentials.endpoint !== 'client') {
      throw new VduseError('INVALID_ARGUMENT', 'Expecting TLS credentials with a client endpoint', {
        hint: 'Add endpoint=client to them.',
      });
    }
    if (credentials.kind === 'x509' && credentials.verifyPeer && this.#hostname === undefined) {
      throw new VduseError('INVALID_ARGUMENT', 'No hostname for certificate validation', {
        hint: 'Give tls-hostname: the name in the certificate of the server.',
      });
    }
    const [theirs, mine] = socketPair();
    this.fd = theirs;
    this.#requests = new NetSocket({ fd: mine });
    this.#requests.on('data', (chunk) => this.#onRequests(chunk));
    this.#requests.on('error', () => {});
    // The node's users keep the process alive, not its relay.
    this.#requests.unref();
  }

  /** Why the last connection was not made; told once. */
  takeError(): VduseError | undefined {
    const error = this.#error;
    this.#error = undefined;
    return error;
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      this.#requests.destroy();
      closeFd(this.fd);
      // The engines' ends are closed, and what they said last is still on its way.
      setTimeout(() => {
        for (const socket of this.#open) {
          socket.destroy();
        }
      }, lingerMs).unref();
    }
  }

  #onRequests(chunk: Buffer): void {
    const bytes = Buffer.concat([this.#partial, chunk]);
    const whole = bytes.length - (bytes.length % 4);
    for (let at = 0; at < whole; at += 4) {
      void this.#serve(bytes.readUInt32LE(at));
    }
    this.#partial = bytes.subarray(whole);
  }

  async #serve(fd: number): Promise<void> {
    const local = this.#keep(new NetSocket({ fd }));
    try {
      await this.#relay(local);
    } catch (error) {
      this.#error = error instanceof VduseError ? error : tlsError(error);
      local.destroy();
    }
  }

  async #relay(local: Socket): Promise<void> {
    const socket = this.#keep(await this.#connect());
    try {
      const { greeting, secure } = await withDeadline(socket, this.#secure(socket));
      local.write(greeting);
      // The flags that the engine answers have been sent already.
      await receive(local, Bytes.clientFlags);
      pipeline(local, secure, local, () => {
        secure.destroy();
        socket.destroy();
      });
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  async #secure(socket: Socket): Promise<{ greeting: Uint8Array; secure: TLSSocket }> {
    const greeting = await receive(socket, Bytes.greeting);
    const steps = startTls(greeting);
    let received: Uint8Array = new Uint8Array(0);
    for (let step = steps.next(received); step.done !== true; step = steps.next(received)) {
      if ('send' in step.value) {
        socket.write(step.value.send);
      } else {
        received = await receive(socket, step.value.receive);
      }
    }
    return { greeting, secure: await this.#startTls(socket) };
  }

  #connect(): Promise<Socket> {
    const address = this.#server;
    if (address.type === 'fd') {
      return this.#connectByDescriptor(address.fd);
    }
    const socket =
      address.type === 'unix'
        ? connectSocket({ path: address.path })
        : connectSocket({ host: address.host, port: address.port, noDelay: true, keepAlive: true });
    return settled(socket, 'connect', socket);
  }

  async #connectByDescriptor(fd: number): Promise<Socket> {
    if (this.#isHandedOver) {
      throw new VduseError('NOT_SUPPORTED', 'a connection that was handed over can not be made again');
    }
    this.#isHandedOver = true;
    return new NetSocket({ fd: adoptDescriptor(fd) });
  }

  #startTls(socket: Socket): Promise<TLSSocket> {
    const secure = connectTls({ socket, ...this.#credentials.clientOptions(this.#hostname) });
    return settled(secure, 'secureConnect', secure);
  }

  #keep<T extends Socket>(socket: T): T {
    socket.on('error', () => {});
    this.#open.add(socket);
    socket.once('close', () => this.#open.delete(socket));
    if (this.#closed) {
      socket.destroy();
    }
    return socket;
  }
}

/** Settles with `value` at the event, or with what went wrong before. */
function settled<T>(socket: Socket, event: string, value: T): Promise<T> {
  return new Promise((resolve, reject) => {
    socket.once('error', reject);
    socket.once('close', () =>
      reject(new VduseError('PROTOCOL', 'the NBD server closed the connection during the TLS handshake')),
    );
    socket.once(event, () => {
      socket.off('error', reject);
      socket.on('error', () => {});
      resolve(value);
    });
  });
}

/** Exactly that many bytes; what came with them stays in the socket. */
async function receive(socket: Socket, length: number): Promise<Uint8Array> {
  for (;;) {
    const bytes = socket.read(length) as Buffer | null;
    if (bytes !== null && bytes.length === length) {
      return bytes;
    }
    if (bytes !== null || socket.readableEnded || socket.destroyed) {
      throw new VduseError('PROTOCOL', 'the NBD server closed the connection during the handshake');
    }
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        for (const event of events) {
          socket.off(event, wake);
        }
        resolve();
      };
      const events = ['readable', 'end', 'close'];
      for (const event of events) {
        socket.once(event, wake);
      }
    });
  }
}

async function withDeadline<T>(socket: Socket, work: Promise<T>): Promise<T> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    socket.destroy();
  }, handshakeMs);
  try {
    return await work;
  } catch (error) {
    throw late ? new VduseError('TIMEOUT', 'the NBD server does not answer') : error;
  } finally {
    clearTimeout(timer);
  }
}

/** Node's words name neither keys nor passwords. Of a line of OpenSSL's the reason is told, and not where in OpenSSL it was. */
function tlsError(error: unknown): VduseError {
  const message = errorMessage(error);
  const isLine = error instanceof Error && 'reason' in error && message.includes(':error:');
  const text = isLine ? String(error.reason) : message;
  return new VduseError('PERMISSION_DENIED', `TLS: ${text}`, {
    hint: 'Check the credentials of both sides: the CA, the names in the certificates, their dates; or the key.',
    cause: error,
  });
}
