/** A file on an HTTP server as an image: the same version of it from the first byte to the last, with retries. */
import { setTimeout as sleep } from 'node:timers/promises';
import { errorMessage, VduseError } from '../../../base/errors.js';
import type { Logger } from '../../../base/log.js';
import { connectHint } from '../../../base/socket-errors.js';
import {
  connectionsMax,
  type FileIdentity,
  type HttpClient,
  type RangeAnswer,
  TransientError,
} from './http-client.js';

const attemptsMax = 5;
/** Before the second attempt; it doubles from one to the next, and varies so that many do not come at once. */
const defaultBackOffMs = 100;

export interface HttpImageContext {
  readonly client: HttpClient;
  /** The image's name in messages: no password and no query, which may be one. */
  readonly name: string;
  readonly logger: Logger;
  /** Milliseconds before the second attempt; 100 when absent. */
  readonly backOffMs?: number;
}

export class HttpImage {
  readonly identity: FileIdentity;
  readonly #context: HttpImageContext;
  #running = 0;
  readonly #waiting: (() => void)[] = [];
  #changed = false;

  /** Asks for the first byte, which tells the size and whether the server gives parts of files at all. */
  static async open(context: HttpImageContext): Promise<HttpImage> {
    const { client, name, backOffMs } = context;
    let identity: FileIdentity | undefined;
    const check = (answer: RangeAnswer): void => {
      identity = answer;
    };
    try {
      await retried(backOffMs, () =>
        client.readRange({ offset: 0, buffer: new Uint8Array(1), onBytes: () => {}, check }),
      );
    } catch (error) {
      const { code, hint } = error instanceof VduseError ? error : { code: undefined, hint: undefined };
      throw new VduseError(code ?? 'TIMEOUT', `cannot open '${name}': ${errorMessage(error)}`, {
        cause: error,
        hint: hint ?? connectHint(error instanceof Error ? error.cause : undefined),
      });
    }
    if (identity === undefined) {
      throw new VduseError('PROTOCOL', `cannot open '${name}': the server does not tell its size`);
    }
    return new HttpImage(context, identity);
  }

  private constructor(context: HttpImageContext, identity: FileIdentity) {
    this.#context = context;
    this.identity = identity;
  }

  /** Fills the buffer from the offset on; the range lies inside the file. */
  async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#takeTurn();
    try {
      await this.#read(offset, buffer);
    } finally {
      this.#running--;
      this.#waiting.shift()?.();
    }
  }

  async #read(offset: number, buffer: Uint8Array): Promise<void> {
    let arrived = 0;
    await retried(this.#context.backOffMs, () =>
      this.#context.client.readRange({
        offset: offset + arrived,
        buffer: buffer.subarray(arrived),
        onBytes: (count) => {
          arrived += count;
        },
        check: (answer) => this.#check(answer),
      }),
    );
  }

  /** Requests beyond the pool's connections wait here: an attempt's time is to be the server's. */
  async #takeTurn(): Promise<void> {
    while (this.#running >= connectionsMax) {
      await new Promise<void>((free) => this.#waiting.push(free));
    }
    this.#running++;
  }

  #check(answer: RangeAnswer): void {
    const { size, etag, lastModified } = this.identity;
    const same = answer.size === size && answer.etag === etag && answer.lastModified === lastModified;
    if (same && !this.#changed) {
      return;
    }
    if (!this.#changed) {
      this.#changed = true;
      this.#context.logger.error(
        `'${this.#context.name}' has changed on the server: all reads fail until it is opened again`,
      );
    }
    // A file that has changed and changed back is as good as mixed up already: somebody works on it.
    throw new VduseError('PROTOCOL', 'the file has changed on the server');
  }
}

/** Tries again what may work the next time, with growing pauses. */
async function retried<T>(backOffMs: number | undefined, attempt: () => Promise<T>): Promise<T> {
  for (let number = 1; ; number++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof TransientError) || number === attemptsMax) {
        throw error;
      }
      await sleep((backOffMs ?? defaultBackOffMs) * 2 ** (number - 1) * (0.5 + Math.random()));
    }
  }
}
