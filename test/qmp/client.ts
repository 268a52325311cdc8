/** A QMP client for tests: lines in, lines out. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

export type Message = Record<string, unknown>;

const ANSWER_MS_MAX = 20_000;

export class QmpClient {
  readonly socket: Socket;
  readonly #lines: string[] = [];
  #rest = '';
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      const lines = (this.#rest + text).split('\n');
      this.#rest = lines.pop() ?? '';
      this.#lines.push(...lines);
      this.#wake();
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.#ended = true;
      this.#wake();
    });
    socket.on('end', () => {
      this.#ended = true;
      this.#wake();
    });
  }

  static async connect(where: string | { host: string; port: number }): Promise<QmpClient> {
    const socket = typeof where === 'string' ? createConnection(where) : createConnection(where);
    await once(socket, 'connect');
    return new QmpClient(socket);
  }

  /** Connects, takes the greeting and negotiates. */
  static async open(where: string | { host: string; port: number }): Promise<QmpClient> {
    const client = await QmpClient.connect(where);
    assert.ok('QMP' in (await client.read()));
    assert.deepEqual(await client.execute('qmp_capabilities'), { return: {} });
    return client;
  }

  /** The next line, undefined at the end of the connection. */
  async readLine(): Promise<string | undefined> {
    const deadline = delay(ANSWER_MS_MAX, 'late', { ref: false });
    while (this.#lines.length === 0 && !this.#ended) {
      const woken = new Promise<void>((wake) => {
        this.#wake = wake;
      });
      assert.notEqual(await Promise.race([woken, deadline]), 'late', 'no answer came');
    }
    return this.#lines.shift();
  }

  /** The next message, undefined at the end of the connection. */
  async next(): Promise<Message | undefined> {
    const line = await this.readLine();
    return line === undefined ? undefined : (JSON.parse(line) as Message);
  }

  async read(): Promise<Message> {
    const message = await this.next();
    assert.ok(message !== undefined, 'the connection ended');
    return message;
  }

  /** Whether nothing has come within a moment. */
  async isSilent(ms = 100): Promise<boolean> {
    await delay(ms);
    return this.#lines.length === 0 && !this.#ended;
  }

  send(text: string | Uint8Array): void {
    this.socket.write(text);
  }

  /** Sends a command and returns the next message, which must be its answer. */
  async execute(command: string, args?: Message): Promise<Message> {
    this.send(JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) }));
    return this.read();
  }

  /** What a command that must succeed returns. */
  async succeed(command: string, args?: Message): Promise<unknown> {
    const answer = await this.execute(command, args);
    assert.ok('return' in answer, `${command}: ${JSON.stringify(answer)}`);
    return answer['return'];
  }

  /** Sends a command that must fail in these words. */
  async fail(command: string, args: Message, desc: string): Promise<void> {
    assert.deepEqual(await this.execute(command, args), { error: { class: 'GenericError', desc } });
  }

  close(): void {
    this.socket.destroy();
  }
}
