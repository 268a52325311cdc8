/** A client of a control socket: one command at a time, each with a time limit. */
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { errorMessage, VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../qmp/json-value.js';

const COMMAND_MS_MAX = 10_000;

export interface QmpClientOptions {
  /** How long the server may take to greet and to answer; it serves one client after the other. */
  readonly timeoutMs?: number;
  /** Told of every event, whenever it comes. */
  readonly onEvent?: (event: JsonObject) => void;
  /** Told when the connection has ended. */
  readonly onEnd?: () => void;
}

interface Waiting {
  readonly resolve: (message: JsonObject) => void;
  readonly reject: (error: unknown) => void;
}

export class QmpClient {
  readonly #socket: Socket;
  readonly #path: string;
  readonly #timeoutMs: number;
  readonly #options: QmpClientOptions;
  /** Messages that nobody has asked for yet: a greeting. */
  readonly #messages: JsonObject[] = [];
  /** Answers that nobody waits for any more: they are not the next command's. */
  #lateAnswers = 0;
  #waiting: Waiting | undefined;
  #end: VduseError | undefined;

  private constructor(socket: Socket, path: string, options: QmpClientOptions) {
    this.#socket = socket;
    this.#path = path;
    this.#timeoutMs = options.timeoutMs ?? COMMAND_MS_MAX;
    this.#options = options;
    void this.#read();
  }

  /** Connects and negotiates. Undefined where nobody listens. Throws TIMEOUT, PERMISSION_DENIED or PROTOCOL. */
  static async connect(path: string, options: QmpClientOptions = {}): Promise<QmpClient | undefined> {
    const socket = createConnection(path);
    try {
      await once(socket, 'connect');
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT' || code === 'ECONNREFUSED') {
        return undefined;
      }
      const denied = code === 'EACCES' || code === 'EPERM';
      throw new VduseError(
        denied ? 'PERMISSION_DENIED' : 'SYSTEM_CALL',
        `control socket ${path}: ${errorMessage(error)}`,
        { cause: error, ...(denied ? { hint: 'Run as the user who runs the export: root.' } : {}) },
      );
    }
    // The end of the connection is seen by whoever reads from it.
    socket.on('error', () => undefined);
    const client = new QmpClient(socket, path, options);
    try {
      const greeting = await client.#next();
      if (greeting['QMP'] === undefined) {
        throw new VduseError('PROTOCOL', `control socket ${path}: it does not speak QMP`, {
          hint: "Give the socket of a daemon's --monitor, not that of an export.",
        });
      }
      await client.execute('qmp_capabilities');
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** Throws INVALID_ARGUMENT with the server's sentence when it refuses, and TIMEOUT. */
  async execute(command: string, args?: JsonObject): Promise<JsonValue> {
    const request = args === undefined ? { execute: command } : { execute: command, arguments: args };
    this.#socket.write(`${JSON.stringify(request)}\n`);
    const message = await this.#next();
    const { error } = message;
    if (isJsonObject(error)) {
      throw new VduseError('INVALID_ARGUMENT', String(error['desc']));
    }
    return message['return'] ?? {};
  }

  close(): void {
    this.#socket.destroy();
  }

  async #next(): Promise<JsonObject> {
    const message = this.#messages.shift();
    if (message !== undefined) {
      return message;
    }
    if (this.#end !== undefined) {
      throw this.#end;
    }
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise<JsonObject>((resolve, reject) => {
        this.#waiting = { resolve, reject };
        timer = setTimeout(() => reject(this.#tooLate()), this.#timeoutMs);
      });
    } finally {
      this.#waiting = undefined;
      clearTimeout(timer);
    }
  }

  #tooLate(): VduseError {
    this.#lateAnswers++;
    return new VduseError('TIMEOUT', `control socket ${this.#path}: no answer in ${this.#timeoutMs} ms`, {
      hint: 'Another client may be connected to it, its process hangs, or it is no monitor.',
    });
  }

  async #read(): Promise<void> {
    let cause: unknown;
    try {
      for await (const message of readMessages(this.#socket)) {
        this.#take(message);
      }
    } catch (error) {
      cause = error;
    }
    this.#end =
      cause instanceof VduseError
        ? cause
        : new VduseError('ABORTED', `control socket ${this.#path}: the export has ended the connection`, {
            cause,
          });
    this.#waiting?.reject(this.#end);
    this.#options.onEnd?.();
  }

  #take(message: JsonObject): void {
    if (message['event'] !== undefined) {
      this.#options.onEvent?.(message);
    } else if (this.#lateAnswers > 0) {
      this.#lateAnswers--;
    } else if (this.#waiting !== undefined) {
      this.#waiting.resolve(message);
    } else {
      this.#messages.push(message);
    }
  }
}

/** The server has answered, and did nothing; with another error nobody knows what it did. */
export function isRefusal(error: unknown): boolean {
  return error instanceof VduseError && error.code === 'INVALID_ARGUMENT';
}

/** The server's messages; each is a line. */
async function* readMessages(socket: Socket): AsyncGenerator<JsonObject> {
  let text = '';
  socket.setEncoding('utf8');
  for await (const chunk of socket) {
    text += chunk as string;
    if (text.length > limits.qmpMessageBytesMax) {
      throw new VduseError('PROTOCOL', 'control socket: a message is too long');
    }
    for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n')) {
      const line = text.slice(0, end);
      text = text.slice(end + 1);
      const message: unknown = JSON.parse(line);
      if (isJsonObject(message)) {
        yield message;
      }
    }
  }
}
