/** TLS credentials as --object and object-add write them (QEMU: qapi/crypto.json, TlsCredsX509Properties and others). */
import { X509Certificate } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createSecureContext } from 'node:tls';
import { z } from 'zod';
import { errorMessage, VduseError } from '../../base/errors.js';
import { systemReason } from '../../base/socket-errors.js';
import { TlsCredentials, type X509Credentials } from '../../base/tls-credentials.js';
import { choice, compact, type Scalars, struct } from '../../qmp/qapi.js';

const common = (s: Scalars) => ({
  id: s.str,
  dir: s.str.optional(),
  endpoint: choice('client', 'server').optional(),
  'verify-peer': s.bool.optional(),
  priority: s.str.optional(),
});

export const tlsObjectOptions = (s: Scalars) =>
  [
    struct({
      'qom-type': z.literal('tls-creds-x509'),
      ...common(s),
      passwordid: s.str.optional(),
      'sanity-check': s.bool.optional(),
    }),
    struct({ 'qom-type': z.literal('tls-creds-psk'), ...common(s), username: s.str.optional() }),
  ] as const;

type TlsObjectOptions = z.output<ReturnType<typeof tlsObjectOptions>[number]>;

/** QEMU's file names. */
const files = {
  ca: 'ca-cert.pem',
  revoked: 'ca-crl.pem',
  client: { certificate: 'client-cert.pem', key: 'client-key.pem' },
  server: { certificate: 'server-cert.pem', key: 'server-key.pem' },
  psk: 'keys.psk',
} as const;

const defaultUsername = 'qemu';

/** `secret` finds the password of an encrypted key. Throws INVALID_ARGUMENT, NOT_FOUND or NOT_SUPPORTED. */
export function toTlsCredentials(
  options: TlsObjectOptions,
  secret: (id: string) => Uint8Array,
): TlsCredentials {
  const { dir, endpoint = 'client' } = options;
  if (dir === undefined) {
    throw new VduseError('INVALID_ARGUMENT', "Missing 'dir' property value");
  }
  if (options.priority !== undefined) {
    throw new VduseError('NOT_SUPPORTED', "'priority' is a string of GnuTLS, which is not used here", {
      hint: 'Leave it out: the protocols and ciphers are those of OpenSSL.',
    });
  }
  const verifyPeer = options['verify-peer'] ?? true;
  if (options['qom-type'] === 'tls-creds-psk') {
    const keys = readKeys(join(dir, files.psk));
    const username = options.username ?? defaultUsername;
    if (endpoint === 'client' && !keys.has(username)) {
      throw new VduseError(
        'NOT_FOUND',
        `Username ${username} not found in PSK file ${join(dir, files.psk)}`,
        {
          hint: 'Add username=, one of those before the colons in that file.',
        },
      );
    }
    return new TlsCredentials({ endpoint, verifyPeer, psk: { keys, username } });
  }
  const passphrase =
    options.passwordid === undefined ? undefined : Buffer.from(secret(options.passwordid)).toString();
  const x509 = readX509(dir, endpoint, passphrase);
  checkX509(x509, { dir, endpoint, isThorough: options['sanity-check'] ?? true });
  return new TlsCredentials({ endpoint, verifyPeer, x509 });
}

/** What OpenSSL would not take is better known now than when somebody connects. Throws INVALID_ARGUMENT. */
function checkX509(
  x509: X509Credentials,
  { dir, endpoint, isThorough }: { dir: string; endpoint: 'client' | 'server'; isThorough: boolean },
): void {
  const { ca, revoked, certificate, key, passphrase } = x509;
  const path = { ca: join(dir, files.ca), own: join(dir, files[endpoint].certificate) };
  const keyPath = join(dir, files[endpoint].key);
  const authority = parseCertificate(ca, `Unable to import CA certificate list ${path.ca}`);
  const own =
    certificate === undefined
      ? undefined
      : parseCertificate(certificate, `Unable to import ${endpoint} certificate ${path.own}`);
  if (isThorough) {
    checkDates(authority, `The CA certificate ${path.ca}`);
    checkDates(own, `The ${endpoint} certificate ${path.own}`);
  }
  try {
    createSecureContext({ ca, ...compact({ crl: revoked, cert: certificate, key, passphrase }) });
  } catch (error) {
    const what = `Cannot load certificate '${path.own}' & key '${keyPath}': ${opensslText(error)}`;
    throw new VduseError('INVALID_ARGUMENT', what, {
      hint: `Do they belong together, and has passwordid the key's password? ${files.revoked} counts, too.`,
      cause: error,
    });
  }
}

function parseCertificate(pem: Buffer, failure: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (error) {
    throw new VduseError('INVALID_ARGUMENT', `${failure}: ${opensslText(error)}`, { cause: error });
  }
}

function checkDates(certificate: X509Certificate | undefined, what: string): void {
  const now = Date.now();
  if (certificate !== undefined && now < Date.parse(certificate.validFrom)) {
    throw new VduseError('INVALID_ARGUMENT', `${what} is not yet active`);
  }
  if (certificate !== undefined && now > Date.parse(certificate.validTo)) {
    throw new VduseError('INVALID_ARGUMENT', `${what} has expired`);
  }
}

/** The last part of OpenSSL's `error:0480006C:PEM routines::no start line`. */
function opensslText(error: unknown): string {
  return errorMessage(error).split(':').at(-1) ?? '';
}

function readX509(
  dir: string,
  endpoint: 'client' | 'server',
  passphrase: string | undefined,
): X509Credentials {
  const names = files[endpoint];
  const certificatePath = join(dir, names.certificate);
  const ca = read(join(dir, files.ca));
  const revokedPath = join(dir, files.revoked);
  const revoked = existsSync(revokedPath) ? read(revokedPath) : undefined;
  // A client may have no certificate of its own; a server can't do without.
  if (endpoint === 'client' && !existsSync(certificatePath)) {
    return { ca, revoked };
  }
  return { ca, revoked, certificate: read(certificatePath), key: read(join(dir, names.key)), passphrase };
}

/** GnuTLS's file of pre-shared keys: a line `user:hex` for each. */
function readKeys(path: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>();
  for (const line of read(path).toString().split('\n')) {
    const match = /^\s*([^#:\s][^:]*):([0-9a-fA-F]+)\s*$/.exec(line);
    if (match !== null && match[2].length % 2 === 0) {
      keys.set(match[1], Buffer.from(match[2], 'hex'));
    }
  }
  return keys;
}

function read(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new VduseError('NOT_FOUND', `Unable to access credentials ${path}: ${systemReason(error)}`, {
      cause: error,
    });
  }
}
