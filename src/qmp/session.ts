/**
 * One client of a QMP monitor: greeting, capabilities negotiation, then one command after the other. Bytes are
 * read only when the commands of the ones before were answered and the client took the answers, so a client
 * can make the server buffer one piece of input and no more.
 */
import { once } from 'node:events';
import type { Duplex } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { z } from 'zod';
import { errorMessage } from '../base/errors.js';
import { limits } from '../base/limits.js';
import type { Logger } from '../base/log.js';
import type { QmpCommandTable } from './command-table.js';
import { QmpError } from './errors.js';
import { type JsonMessage, JsonStream } from './json-stream.js';
import { formatJson, type JsonObject, type JsonValue } from './json-value.js';
import {
  checkRequest,
  errorAnswer,
  eventMessage,
  greeting,
  type QmpEvent,
  type QmpRequest,
  type QmpVersion,
  requestId,
  successAnswer,
} from './protocol.js';
import { checkOptions, choice, struct } from './qapi.js';

/** How long a closing session waits for the running command, and for a client that does not take what it asked for. */
const CLOSE_MS_MAX = 1000;

const capabilitiesArguments = struct({ enable: z.array(choice('oob')).optional() });

export interface QmpSessionOptions {
  /** Ended only by the session: a client that half-closes still gets its answers. */
  readonly stream: Duplex;
  readonly commands: QmpCommandTable;
  readonly version: QmpVersion;
  readonly pretty: boolean;
  readonly logger: Logger;
}

export class QmpSession {
  /** Settles when the client has gone. Never rejects. */
  readonly ended: Promise<void>;
  readonly #options: QmpSessionOptions;
  readonly #messages = new JsonStream();
  #negotiated = false;
  #closing = false;
  /** The answer to the running command. */
  #answering: Promise<void> = Promise.resolve();

  constructor(options: QmpSessionOptions) {
    this.#options = options;
    this.ended = this.#serve();
  }

  /** Clients that have not negotiated get no events. */
  sendEvent(event: QmpEvent): void {
    if (this.#negotiated) {
      this.#write(eventMessage(event, Date.now()));
    }
  }

  /** Answers the running command, takes no further one, and ends the connection. */
  async close(): Promise<void> {
    this.#closing = true;
    await withinCloseTime(this.#answering);
    await this.#hangUp();
    await withinCloseTime(this.ended);
  }

  async #serve(): Promise<void> {
    const { stream, version, logger } = this.#options;
    // Errors end the loop below; this keeps those that come outside of it from ending the process.
    stream.on('error', () => undefined);
    try {
      this.#write(greeting(version));
      // The stream is not destroyed at the end of its input: answers may still be on their way.
      for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
        this.#messages.push(chunk as Buffer);
        for (let next = this.#next(); next !== undefined; next = this.#next()) {
          this.#answering = this.#answer(next);
          await this.#answering;
          await this.#drained();
        }
      }
    } catch (error) {
      logger.debug(`QMP client lost: ${errorMessage(error)}`);
    }
    await this.#hangUp();
  }

  /** Lets the client take what was written, for a while, and ends the connection. */
  async #hangUp(): Promise<void> {
    const { stream } = this.#options;
    if (!stream.destroyed && stream.writable) {
      const written = Promise.race([once(stream, 'finish'), once(stream, 'close')]);
      stream.end();
      await withinCloseTime(written);
    }
    stream.destroy();
  }

  #next(): JsonMessage | undefined {
    return this.#closing ? undefined : this.#messages.next();
  }

  async #answer(message: JsonMessage): Promise<void> {
    if (message.error !== undefined) {
      this.#write(errorAnswer(new QmpError('GenericError', message.error), undefined));
      return;
    }
    const id = requestId(message.value);
    try {
      this.#write(successAnswer(await this.#execute(checkRequest(message.value)), id));
    } catch (error) {
      this.#write(errorAnswer(error, id));
    }
  }

  async #execute(request: QmpRequest): Promise<JsonValue> {
    const isNegotiation = request.command === 'qmp_capabilities';
    if (!this.#negotiated) {
      if (!isNegotiation) {
        throw new QmpError('CommandNotFound', "Expecting capabilities negotiation with 'qmp_capabilities'");
      }
      const { enable = [] } = checkOptions(capabilitiesArguments, request.arguments);
      if (enable.length > 0) {
        throw new QmpError('GenericError', `Capability '${enable[0]}' is not available`);
      }
      this.#negotiated = true;
      return {};
    }
    if (isNegotiation) {
      throw new QmpError('CommandNotFound', 'Capabilities negotiation is already complete, command ignored');
    }
    return this.#options.commands.execute(request.command, request.arguments);
  }

  #write(message: JsonObject): void {
    const { stream, pretty, logger } = this.#options;
    if (!stream.writable) {
      return;
    }
    stream.write(`${formatJson(message, { pretty })}\n`);
    if (stream.writableLength > limits.qmpMessageBytesMax) {
      logger.warn('a QMP client that does not read what it is sent was disconnected');
      stream.destroy();
    }
  }

  async #drained(): Promise<void> {
    const { stream } = this.#options;
    if (stream.writableNeedDrain && stream.writable) {
      await Promise.race([once(stream, 'drain'), once(stream, 'close')]);
    }
  }
}

/** Waits for the promise, but not longer than a closing session may take. */
async function withinCloseTime(promise: Promise<unknown>): Promise<void> {
  const timeout = new AbortController();
  const tooLate = delay(CLOSE_MS_MAX, undefined, { signal: timeout.signal });
  await Promise.race([promise, tooLate].map((one) => one.catch(() => undefined)));
  timeout.abort();
}
