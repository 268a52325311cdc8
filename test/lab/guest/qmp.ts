/** A client of a QMP socket that knows nothing but the protocol. */
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';

export interface QmpMessage {
  readonly QMP?: unknown;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly data?: unknown;
}

export class QmpClient {
  readonly #socket: Socket;
  readonly #messages: QmpMessage[] = [];
  readonly events: string[] = [];
  #rest = '';
  #wake: () => void = () => {};

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8').on('data', (text: string) => this.#receive(text));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#wake());
  }

  /** Connects, and leaves the negotiation mode. */
  static async connect(path: string): Promise<QmpClient> {
    const socket = connect(path);
    await once(socket, 'connect');
    const client = new QmpClient(socket);
    const greeting = await client.#next();
    if (greeting.QMP === undefined) {
      throw new Error(`no greeting: ${JSON.stringify(greeting)}`);
    }
    await client.execute('qmp_capabilities');
    return client;
  }

  /** The command's return value. Throws what the other side calls an error. */
  async execute(command: string, args?: object): Promise<unknown> {
    const answer = await this.ask(command, args);
    if (answer.error !== undefined) {
      throw new Error(`${command}: ${answer.error.class}: ${answer.error.desc}`);
    }
    return answer.return;
  }

  /** The answer, whatever it is. */
  async ask(command: string, args?: object): Promise<QmpMessage> {
    this.#socket.write(
      `${JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) })}\n`,
    );
    return this.#next();
  }

  close(): void {
    this.#socket.destroy();
  }

  /** The next message that is no event. */
  async #next(): Promise<QmpMessage> {
    while (this.#messages.length === 0) {
      if (this.#socket.destroyed) {
        throw new Error('the monitor has hung up');
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#messages.shift() as QmpMessage;
  }

  #receive(text: string): void {
    const lines = (this.#rest + text).split('\n');
    this.#rest = lines.pop() ?? '';
    for (const line of lines.filter((candidate) => candidate.trim() !== '')) {
      const message = JSON.parse(line) as QmpMessage;
      if (message.event === undefined) {
        this.#messages.push(message);
      } else {
        this.events.push(message.event);
      }
    }
    this.#wake();
  }
}
