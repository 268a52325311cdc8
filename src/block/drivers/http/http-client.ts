/**
 * One range of a file on an HTTP server, in one attempt (RFC 9110, section 14). The server is not trusted: what it
 * sends is counted against what was asked for, and an attempt has a time.
 */
import { Agent, type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http';
import { request as requestHttps, Agent as SecureAgent } from 'node:https';
import { errorMessage, VduseError } from '../../../base/errors.js';
import { systemReason } from '../../../base/socket-errors.js';

/** Connections to a server that are kept and used at once, as many as QEMU's curl driver has. */
export const connectionsMax = 8;
const redirectsMax = 5;

/** What tells one version of a file from another. */
export interface FileIdentity {
  readonly size: number;
  readonly etag: string | undefined;
  readonly lastModified: string | undefined;
}

export interface RangeAnswer extends FileIdentity {
  /** Where the file was found in the end. */
  readonly url: URL;
}

/** A failure that another attempt may not meet. */
export class TransientError extends Error {}

export interface HttpClientOptions {
  readonly url: URL;
  readonly headers: Readonly<Record<string, string>>;
  readonly timeoutMs: number;
  readonly verifyCertificate: boolean;
  /** Certificates of authorities to trust beside Node's own, PEM. */
  readonly authorities: readonly string[];
}

export interface RangeRequest {
  readonly offset: number;
  /** Takes the bytes; its length is the range's. */
  readonly buffer: Uint8Array;
  /** Told of every part that arrives, so that another attempt can go on from there. */
  readonly onBytes: (count: number) => void;
  /** Throws for an answer that is not about the file that was opened. */
  readonly check: (answer: RangeAnswer) => void;
}

export class HttpClient {
  readonly #options: HttpClientOptions;
  readonly #agent: Agent;
  readonly #attempts = new Set<AbortController>();
  #closed = false;
  /** Where redirections led last time. */
  #url: URL;

  constructor(options: HttpClientOptions) {
    this.#options = options;
    this.#url = options.url;
    const { verifyCertificate, authorities } = options;
    const pool = { keepAlive: true, maxSockets: connectionsMax, maxFreeSockets: connectionsMax };
    this.#agent =
      options.url.protocol === 'https:'
        ? new SecureAgent({
            ...pool,
            rejectUnauthorized: verifyCertificate,
            ...(authorities.length === 0 ? {} : { ca: [...authorities] }),
          })
        : new Agent(pool);
  }

  /** Throws TransientError, or VduseError for what no other attempt would mend. */
  async readRange(range: RangeRequest): Promise<RangeAnswer> {
    const attempt = new AbortController();
    const timer = setTimeout(() => attempt.abort(), this.#options.timeoutMs);
    this.#attempts.add(attempt);
    try {
      return await this.#readRange(range, attempt.signal);
    } catch (error) {
      // The place that redirections led to may be good for a time only: the next attempt starts anew.
      this.#url = this.#options.url;
      if (this.#closed) {
        throw new VduseError('ABORTED', 'the image is being closed');
      }
      throw attempt.signal.aborted
        ? new TransientError(`no whole answer within ${this.#options.timeoutMs / 1000} s`)
        : error;
    } finally {
      clearTimeout(timer);
      this.#attempts.delete(attempt);
    }
  }

  close(): void {
    this.#closed = true;
    for (const attempt of this.#attempts) {
      attempt.abort();
    }
    this.#agent.destroy();
  }

  async #readRange(range: RangeRequest, signal: AbortSignal): Promise<RangeAnswer> {
    for (let redirects = 0; redirects <= redirectsMax; redirects++) {
      const response = await this.#send(range, signal);
      try {
        const location = redirection(response);
        if (location === undefined) {
          const answer = readAnswer(response, range, this.#url);
          range.check(answer);
          await readBody(response, range);
          return answer;
        }
        this.#url = this.#redirected(location);
      } finally {
        // A body that is not wanted would otherwise be read to its end.
        if (!response.complete) {
          response.destroy();
        }
      }
    }
    throw new VduseError('PROTOCOL', `the server redirects more than ${redirectsMax} times`);
  }

  #redirected(location: string): URL {
    const url = URL.canParse(location, this.#url.href) ? new URL(location, this.#url) : undefined;
    if (url === undefined || url.protocol !== this.#options.url.protocol) {
      throw new VduseError('PROTOCOL', 'the server redirects to what is not a URL of the same scheme');
    }
    return url;
  }

  #send(range: RangeRequest, signal: AbortSignal): Promise<IncomingMessage> {
    const { url, headers } = this.#options;
    // Names and passwords are the first server's; another must not see them.
    const own = this.#url.origin === url.origin ? headers : {};
    const options: RequestOptions = {
      agent: this.#agent,
      signal,
      headers: {
        ...own,
        // The bytes as they are: a compressed range is of no use.
        'accept-encoding': 'identity',
        range: `bytes=${range.offset}-${range.offset + range.buffer.length - 1}`,
      },
    };
    return new Promise((resolve, reject) => {
      const request =
        this.#url.protocol === 'https:'
          ? requestHttps(this.#url, options, resolve)
          : requestHttp(this.#url, options, resolve);
      request.once('error', (error: NodeJS.ErrnoException) => reject(connectionError(error)));
      request.end();
    });
  }
}

/** Certificates do not become good by another attempt; connections do. */
function connectionError(error: NodeJS.ErrnoException): Error {
  const { code = '' } = error;
  if (/CERT|SELF_SIGNED|ALTNAME|UNABLE_TO_(GET|VERIFY)/.test(code)) {
    return new VduseError('PERMISSION_DENIED', `the server's certificate is not trusted: ${error.message}`, {
      hint: 'Give the machine the authority (update-ca-certificates), or open with sslverify=off.',
    });
  }
  if (code.startsWith('HPE_')) {
    return new VduseError('PROTOCOL', `the server does not speak HTTP: ${error.message}`);
  }
  return new TransientError(systemReason(error), { cause: error });
}

function redirection(response: IncomingMessage): string | undefined {
  const { statusCode = 0 } = response;
  const { location } = response.headers;
  return [301, 302, 303, 307, 308].includes(statusCode) ? location : undefined;
}

function readAnswer(response: IncomingMessage, range: RangeRequest, url: URL): RangeAnswer {
  const { statusCode = 0, headers } = response;
  const version = { url, etag: headers.etag, lastModified: headers['last-modified'] };
  // 14.4: an answer that nothing can be read of tells the size all the same.
  const empty = /^bytes \*\/(\d+)$/.exec(headers['content-range'] ?? '');
  if (statusCode === 416 && empty !== null) {
    return { ...version, size: Number(empty[1]) };
  }
  if (statusCode !== 206) {
    throw statusError(statusCode);
  }
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(headers['content-range'] ?? '');
  const [first, last, size] = match === null ? [-1, -1, -1] : match.slice(1).map(Number);
  const length = headers['content-length'];
  const encoding = headers['content-encoding'] ?? 'identity';
  // A server may give less than was asked for (15.3.7) where the file ends; more, or elsewhere, is wrong.
  const wanted = Math.min(range.buffer.length, Math.max(0, size - range.offset));
  const wrong =
    first !== range.offset ||
    last !== range.offset + wanted - 1 ||
    !Number.isSafeInteger(size) ||
    encoding !== 'identity' ||
    (length !== undefined && Number(length) !== wanted);
  if (wrong) {
    throw new VduseError('PROTOCOL', 'the server answers another range than it was asked for');
  }
  return { ...version, size };
}

function statusError(status: number): Error {
  if (status === 200) {
    return new VduseError('NOT_SUPPORTED', "the server does not support 'range' (byte ranges)", {
      hint: 'Images need a server that answers parts of a file; most do for plain files.',
    });
  }
  if (status === 401 || status === 403 || status === 407) {
    return new VduseError('PERMISSION_DENIED', `the server refuses access (HTTP ${status})`);
  }
  if (status === 404 || status === 410) {
    return new VduseError('NOT_FOUND', `the server has no such file (HTTP ${status})`);
  }
  // 15.5.9 Request Timeout, RFC 6585 Too Many Requests, and what is wrong with the server itself.
  if (status === 408 || status === 429 || status >= 500) {
    return new TransientError(`HTTP status ${status}`);
  }
  return new VduseError('PROTOCOL', `the server answers with HTTP status ${status}`);
}

async function readBody(response: IncomingMessage, range: RangeRequest): Promise<void> {
  if (response.statusCode === 416) {
    return;
  }
  const { buffer } = range;
  let done = 0;
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      if (done + chunk.length > buffer.length) {
        throw new VduseError('PROTOCOL', 'the server sends more than it was asked for');
      }
      buffer.set(chunk, done);
      done += chunk.length;
      range.onBytes(chunk.length);
    }
  } catch (error) {
    throw error instanceof VduseError ? error : new TransientError(errorMessage(error));
  }
  if (done < buffer.length) {
    throw new TransientError(`the answer ends after ${done} of ${buffer.length} bytes`);
  }
}
