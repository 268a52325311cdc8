/** What TLS needs of one side. The secrets in it are private members, so that no log and no answer shows them. */
import { isIP } from 'node:net';
import type { ConnectionOptions, TlsOptions } from 'node:tls';

export interface X509Credentials {
  readonly ca: Buffer;
  /** Certificates that count no more. */
  readonly revoked?: Buffer | undefined;
  readonly certificate?: Buffer | undefined;
  readonly key?: Buffer | undefined;
  readonly passphrase?: string | undefined;
}

export class TlsCredentials {
  readonly kind: 'x509' | 'psk';
  readonly endpoint: 'client' | 'server';
  /** Whether the other side must prove who it is. */
  readonly verifyPeer: boolean;
  readonly #x509: X509Credentials | undefined;
  readonly #psk: ReadonlyMap<string, Buffer> | undefined;
  readonly #username: string;

  constructor(options: {
    readonly endpoint: 'client' | 'server';
    readonly verifyPeer: boolean;
    readonly x509?: X509Credentials;
    /** Pre-shared keys by user name, and the one by which a client calls itself. */
    readonly psk?: { readonly keys: ReadonlyMap<string, Buffer>; readonly username: string };
  }) {
    this.kind = options.psk === undefined ? 'x509' : 'psk';
    this.endpoint = options.endpoint;
    this.verifyPeer = options.verifyPeer;
    this.#x509 = options.x509;
    this.#psk = options.psk?.keys;
    this.#username = options.psk?.username ?? '';
  }

  /** For tls.connect, all but the socket. `hostname` is what the server's certificate must be for. */
  clientOptions(hostname: string | undefined): ConnectionOptions {
    if (this.#psk !== undefined) {
      const psk = this.#psk.get(this.#username);
      const identity = this.#username;
      return {
        ciphers: pskCiphers,
        // With a pre-shared key there is no certificate to look at.
        checkServerIdentity: () => undefined,
        pskCallback: () => (psk === undefined ? null : { psk, identity }),
      };
    }
    const { ca, revoked, certificate, key, passphrase } = this.#x509!;
    return {
      ca,
      ...(revoked === undefined ? {} : { crl: revoked }),
      ...(certificate === undefined ? {} : { cert: certificate }),
      ...(key === undefined ? {} : { key }),
      ...(passphrase === undefined ? {} : { passphrase }),
      rejectUnauthorized: this.verifyPeer,
      // An IP address is not sent as a name (RFC 6066), but checked all the same.
      ...(hostname === undefined ? {} : { host: hostname, servername: isIP(hostname) === 0 ? hostname : '' }),
    };
  }

  /** For a server's side of a connection. A client that can't prove who it is does not get through the handshake. */
  serverOptions(): TlsOptions {
    const common = { minVersion: 'TLSv1.2', dhparam: 'auto' } as const;
    const psk = this.#psk;
    if (psk !== undefined) {
      return {
        ...common,
        ciphers: pskCiphers,
        pskCallback: (_socket, identity) => psk.get(identity) ?? null,
      };
    }
    const { ca, revoked, certificate, key, passphrase } = this.#x509!;
    return {
      ...common,
      ca,
      ...(revoked === undefined ? {} : { crl: revoked }),
      ...(certificate === undefined ? {} : { cert: certificate }),
      ...(key === undefined ? {} : { key }),
      ...(passphrase === undefined ? {} : { passphrase }),
      requestCert: this.verifyPeer,
      rejectUnauthorized: this.verifyPeer,
    };
  }
}

/** Those that GnuTLS and OpenSSL both have, forward secrecy first. */
const pskCiphers = [
  'TLS_AES_256_GCM_SHA384',
  'TLS_AES_128_GCM_SHA256',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-PSK-CHACHA20-POLY1305',
  'DHE-PSK-AES256-GCM-SHA384',
  'DHE-PSK-AES128-GCM-SHA256',
  'PSK-AES256-GCM-SHA384',
  'PSK-AES128-GCM-SHA256',
].join(':');
