/** The block drivers `http` and `https`: images on web servers, read only, with the options of QEMU's curl driver. */
import { readFileSync } from 'node:fs';
import { rootCertificates } from 'node:tls';
import { VduseError } from '../../../base/errors.js';
import type { BlockNode, BlockServices, HttpNodeOptions } from '../../node.js';
import { openLocalNode } from '../local-node.js';
import { HttpClient } from './http-client.js';
import { HttpDevice } from './http-device.js';
import { HttpImage } from './http-image.js';

/** QEMU's defaults: bytes and seconds. */
const defaultReadahead = 256 << 10;
const defaultTimeoutS = 5;
const timeoutSMax = 10_000;
const readaheadMax = 64 << 20;
const sectorBytes = 512;
/** Where Debian and Fedora keep the authorities that a machine trusts; Node has a list of its own. */
const authorityFiles = ['/etc/ssl/certs/ca-certificates.crt', '/etc/pki/tls/certs/ca-bundle.crt'];

/** Throws INVALID_ARGUMENT, IMAGE_READ_ONLY, NOT_FOUND, PERMISSION_DENIED, NOT_SUPPORTED, PROTOCOL or TIMEOUT. */
export async function openHttpNode(options: HttpNodeOptions, services: BlockServices): Promise<BlockNode> {
  if (options.readOnly !== true && options.autoReadOnly !== true) {
    throw new VduseError('IMAGE_READ_ONLY', `the block driver '${options.driver}' does not support writes`, {
      hint: 'Open it read-only: read-only=on, or --read-only of a command.',
    });
  }
  const { readahead = defaultReadahead, timeout = defaultTimeoutS } = options;
  if (readahead % sectorBytes !== 0 || readahead > readaheadMax) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `readahead ${readahead}: it must be a multiple of ${sectorBytes} and at most ${readaheadMax} bytes`,
    );
  }
  if (timeout < 1 || timeout > timeoutSMax) {
    throw new VduseError('INVALID_ARGUMENT', `timeout ${timeout}: it must be 1 to ${timeoutSMax} seconds`);
  }
  const url = parseUrl(options);
  const name = displayName(url);
  const client = new HttpClient({
    url: withoutUser(url),
    headers: headersOf(options, url, services),
    timeoutMs: timeout * 1000,
    verifyCertificate: options.sslVerify ?? true,
    authorities: options.driver === 'https' ? authorities() : [],
  });
  try {
    const image = await HttpImage.open({ client, name, logger: services.logger });
    const device = new HttpDevice(image, { readahead, onClose: () => client.close() });
    return openLocalNode({
      nodeName: options.nodeName,
      driver: options.driver,
      filename: name,
      device,
      readOnly: true,
    });
  } catch (error) {
    client.close();
    throw error;
  }
}

function parseUrl(options: HttpNodeOptions): URL {
  const scheme = `${options.driver}:`;
  const url = URL.canParse(options.url) ? new URL(options.url) : undefined;
  if (url === undefined || url.protocol !== scheme) {
    // Not the text itself: it may hold a password.
    throw new VduseError(
      'INVALID_ARGUMENT',
      `the block driver '${options.driver}' cannot handle this url: it does not start with '${scheme}//'`,
    );
  }
  url.hash = '';
  return url;
}

function withoutUser(url: URL): URL {
  const bare = new URL(url);
  bare.username = '';
  bare.password = '';
  return bare;
}

/** A query may be a ticket (a presigned URL): messages and answers do without it. */
function displayName(url: URL): string {
  const shown = withoutUser(url);
  shown.search = '';
  return url.search === '' ? shown.href : `${shown.href}?...`;
}

function headersOf(options: HttpNodeOptions, url: URL, services: BlockServices): Record<string, string> {
  const headers: Record<string, string> = {};
  const { cookie, cookieSecret, passwordSecret } = options;
  if (cookie !== undefined && cookieSecret !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', "'cookie' and 'cookie-secret' can't be used together");
  }
  const username = options.username ?? decodeURIComponent(url.username);
  if (username !== '') {
    const password =
      passwordSecret === undefined
        ? decodeURIComponent(url.password)
        : textOf(passwordSecret, services.secret(passwordSecret));
    headers['authorization'] = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
  }
  const cookies = cookieSecret === undefined ? cookie : textOf(cookieSecret, services.secret(cookieSecret));
  if (cookies !== undefined) {
    headers['cookie'] = checkHeader('cookie', cookies);
  }
  return headers;
}

/** A secret's text; a file that holds one usually ends with a line end that is not part of it. */
function textOf(id: string, secret: Uint8Array): string {
  return checkHeader(
    `secret '${id}'`,
    Buffer.from(secret)
      .toString('utf8')
      .replace(/\r?\n$/, ''),
  );
}

function checkHeader(what: string, text: string): string {
  if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(text)) {
    throw new VduseError('INVALID_ARGUMENT', `${what}: it has characters that no HTTP header can have`);
  }
  return text;
}

function authorities(): string[] {
  for (const file of authorityFiles) {
    try {
      return [...rootCertificates, readFileSync(file, 'utf8')];
    } catch {
      // The next one, or Node's own list.
    }
  }
  return [];
}
