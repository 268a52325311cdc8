/**
 * An NBD client for tests, written from the protocol's text and not from the server's source: it has its own
 * numbers, says anything that it is told to, and believes nothing.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { NbdAddress } from '../../src/nbd/nbd-server.js';

const ANSWER_MS_MAX = 20_000;
const OPTION_MAGIC = 0x49484156454f5054n;

export interface OptionAnswer {
  readonly type: number;
  readonly data: Buffer;
}

export interface RawRequest {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: bigint;
  readonly offset?: number | bigint;
  readonly length?: number;
  readonly magic?: number;
  readonly data?: Uint8Array;
}

export interface Chunk {
  readonly type: number;
  readonly isLast: boolean;
  readonly payload: Buffer;
}

/** What came for one request, put together. */
export interface Outcome {
  readonly cookie: bigint;
  readonly errno: number;
  readonly text: string;
  /** Of a read: where nothing came stays 0xee, which no test writes. */
  readonly data: Buffer;
  /** Structured replies: each chunk as it came. */
  readonly chunks: readonly Chunk[];
  readonly extents: readonly { readonly length: number; readonly flags: number }[];
}

export interface GoOptions {
  readonly name?: string;
  readonly structured?: boolean;
  readonly context?: boolean;
}

interface Pending {
  readonly offset: number;
  readonly length: number;
  readonly isRead: boolean;
}

export function string32(text: string | Buffer): Buffer {
  const bytes = Buffer.from(text as string);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

export function exportQuery(name: string, infos: readonly number[] = []): Buffer {
  const tail = Buffer.alloc(2 + 2 * infos.length);
  tail.writeUInt16BE(infos.length);
  infos.forEach((info, n) => {
    tail.writeUInt16BE(info, 2 + 2 * n);
  });
  return Buffer.concat([string32(name), tail]);
}

export function contextQuery(name: string, queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([string32(name), count, ...queries.map((query) => string32(query))]);
}

export function encodeRequest(request: RawRequest): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(request.magic ?? 0x25609513);
  header.writeUInt16BE(request.flags ?? 0, 4);
  header.writeUInt16BE(request.type, 6);
  header.writeBigUInt64BE(request.cookie ?? 0n, 8);
  header.writeBigUInt64BE(BigInt(request.offset ?? 0), 16);
  header.writeUInt32BE(request.length ?? request.data?.length ?? 0, 24);
  return request.data === undefined ? header : Buffer.concat([header, request.data]);
}

export class RawClient {
  readonly socket: Socket;
  /** Of the export, once it is chosen. */
  size = 0;
  flags = 0;
  structured = false;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #isOver = false;
  #wake: () => void = () => undefined;
  readonly #pending = new Map<bigint, Pending>();
  #nextCookie = 1n;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#wake();
    });
    socket.on('error', () => undefined);
    for (const event of ['end', 'close']) {
      socket.on(event, () => {
        this.#isOver = true;
        this.#wake();
      });
    }
  }

  static async connect(address: NbdAddress): Promise<RawClient> {
    const socket =
      address.type === 'unix'
        ? createConnection(address.path)
        : createConnection(address.port, address.host ?? '127.0.0.1');
    await once(socket, 'connect');
    return new RawClient(socket);
  }

  /** Connects, shakes hands and chooses an export. */
  static async open(address: NbdAddress, options: GoOptions = {}): Promise<RawClient> {
    const client = await RawClient.connect(address);
    await client.greet();
    await client.go(options);
    return client;
  }

  send(...bytes: Uint8Array[]): void {
    this.socket.write(Buffer.concat(bytes));
  }

  close(): void {
    this.socket.destroy();
  }

  /** Exactly `length` bytes. */
  async read(length: number): Promise<Buffer> {
    const deadline = delay(ANSWER_MS_MAX, 'late', { ref: false });
    while (this.#receivedBytes < length) {
      assert.ok(!this.#isOver, `the server closed after ${this.#receivedBytes} of ${length} bytes`);
      const woken = new Promise<void>((wake) => {
        this.#wake = wake;
      });
      assert.notEqual(await Promise.race([woken, deadline]), 'late', 'no answer came');
    }
    // Only as much as is asked for is put together: thousands of replies may be waiting.
    const taken: Buffer[] = [];
    for (let left = length; left > 0; ) {
      const first = this.#received[0];
      taken.push(first.subarray(0, left));
      if (first.length <= left) {
        this.#received.shift();
      } else {
        this.#received[0] = first.subarray(left);
      }
      left -= Math.min(first.length, left);
    }
    this.#receivedBytes -= length;
    return Buffer.concat(taken);
  }

  /** Waits until the server has closed; returns what it sent that nobody read. */
  async readToEnd(): Promise<Buffer> {
    const deadline = delay(ANSWER_MS_MAX, 'late', { ref: false });
    while (!this.#isOver) {
      const woken = new Promise<void>((wake) => {
        this.#wake = wake;
      });
      assert.notEqual(await Promise.race([woken, deadline]), 'late', 'the server did not close');
    }
    const rest = Buffer.concat(this.#received);
    this.#received = [];
    this.#receivedBytes = 0;
    return rest;
  }

  async greet(clientFlags = 3): Promise<number> {
    const greeting = await this.read(18);
    assert.equal(greeting.subarray(0, 16).toString('latin1'), 'NBDMAGICIHAVEOPT');
    const flags = Buffer.alloc(4);
    flags.writeUInt32BE(clientFlags);
    this.send(flags);
    return greeting.readUInt16BE(16);
  }

  sendOption(option: number, data: Uint8Array = Buffer.alloc(0), length = data.length): void {
    const header = Buffer.alloc(16);
    header.writeBigUInt64BE(OPTION_MAGIC);
    header.writeUInt32BE(option, 8);
    header.writeUInt32BE(length, 12);
    this.send(header, data);
  }

  async readOptionAnswer(option: number): Promise<OptionAnswer> {
    const header = await this.read(20);
    assert.equal(header.readBigUInt64BE(0), 0x3e889045565a9n);
    assert.equal(header.readUInt32BE(8), option);
    return { type: header.readUInt32BE(12), data: await this.read(header.readUInt32BE(16)) };
  }

  /** All answers to an option: up to ACK or an error. */
  async option(option: number, data?: Uint8Array): Promise<OptionAnswer[]> {
    this.sendOption(option, data);
    const answers: OptionAnswer[] = [];
    for (;;) {
      const answer = await this.readOptionAnswer(option);
      answers.push(answer);
      if (answer.type === 1 || answer.type >= 0x8000_0000) {
        return answers;
      }
    }
  }

  async go(options: GoOptions = {}): Promise<OptionAnswer[]> {
    const { name = '', structured = false, context = false } = options;
    if (structured) {
      assert.deepEqual(await this.option(8), [{ type: 1, data: Buffer.alloc(0) }]);
      this.structured = true;
    }
    if (context) {
      assert.equal((await this.option(10, contextQuery(name, ['base:allocation']))).length, 2);
    }
    const answers = await this.option(7, exportQuery(name, [3]));
    assert.equal(answers.at(-1)?.type, 1);
    const info = answers.find((answer) => answer.type === 3 && answer.data.readUInt16BE(0) === 0);
    assert.ok(info !== undefined);
    this.size = Number(info.data.readBigUInt64BE(2));
    this.flags = info.data.readUInt16BE(10);
    return answers;
  }

  /** Sends a request; returns its cookie. */
  request(request: RawRequest): bigint {
    const cookie = request.cookie ?? this.#nextCookie++;
    this.expect({ ...request, cookie });
    this.send(encodeRequest({ ...request, cookie }));
    return cookie;
  }

  /** A request that is sent by other means: its reply will be read. */
  expect(request: RawRequest & { readonly cookie: bigint }): void {
    const length = request.length ?? request.data?.length ?? 0;
    this.#pending.set(request.cookie, {
      offset: Number(request.offset ?? 0),
      length,
      isRead: request.type === 0,
    });
  }

  async call(request: RawRequest): Promise<Outcome> {
    const cookie = this.request(request);
    const outcome = await this.outcome();
    assert.equal(outcome.cookie, cookie);
    return outcome;
  }

  /** The next reply, whose chunks nothing of another reply interrupts. */
  async outcome(): Promise<Outcome> {
    const chunks: Chunk[] = [];
    for (;;) {
      const magic = (await this.read(4)).readUInt32BE();
      if (magic === 0x67446698) {
        assert.equal(chunks.length, 0, 'a simple reply after chunks');
        return this.#simpleOutcome();
      }
      assert.equal(magic, 0x668e33ef, 'the magic number of a reply');
      assert.ok(this.structured, 'structured replies were agreed on');
      const header = await this.read(16);
      const payload = await this.read(header.readUInt32BE(12));
      const flags = header.readUInt16BE(0);
      chunks.push({ type: header.readUInt16BE(2), isLast: (flags & 1) !== 0, payload });
      if ((flags & 1) !== 0) {
        return this.#structuredOutcome(header.readBigUInt64BE(4), chunks);
      }
    }
  }

  #take(cookie: bigint): Pending {
    const pending = this.#pending.get(cookie);
    assert.ok(pending !== undefined, `a reply to cookie ${cookie}, which nobody sent`);
    this.#pending.delete(cookie);
    return pending;
  }

  async #simpleOutcome(): Promise<Outcome> {
    const header = await this.read(12);
    const errno = header.readUInt32BE(0);
    const cookie = header.readBigUInt64BE(4);
    const { isRead, length } = this.#take(cookie);
    assert.ok(!isRead || !this.structured, 'a simple reply to a read');
    const data = await this.read(isRead && errno === 0 ? length : 0);
    return { cookie, errno, text: '', data, chunks: [], extents: [] };
  }

  #structuredOutcome(cookie: bigint, chunks: readonly Chunk[]): Outcome {
    const pending = this.#take(cookie);
    const hasData = pending.isRead && chunks.some((chunk) => chunk.type === 1 || chunk.type === 2);
    const data = Buffer.alloc(hasData ? pending.length : 0, 0xee);
    const extents: { length: number; flags: number }[] = [];
    let errno = 0;
    let text = '';
    let covered = 0;
    for (const { type, payload } of chunks) {
      if (type === 1) {
        const at = Number(payload.readBigUInt64BE()) - pending.offset;
        assert.ok(payload.length > 8 && at >= 0 && at + payload.length - 8 <= pending.length);
        covered += payload.copy(data, at, 8);
      } else if (type === 2) {
        const at = Number(payload.readBigUInt64BE()) - pending.offset;
        const length = payload.readUInt32BE(8);
        assert.ok(payload.length === 12 && length > 0 && at >= 0 && at + length <= pending.length);
        data.fill(0, at, at + length);
        covered += length;
      } else if (type === 5) {
        for (let at = 4; at < payload.length; at += 8) {
          extents.push({ length: payload.readUInt32BE(at), flags: payload.readUInt32BE(at + 4) });
        }
      } else if (type === 0x8001) {
        errno = payload.readUInt32BE();
        text = payload.subarray(6, 6 + payload.readUInt16BE(4)).toString();
      } else {
        assert.equal(type, 0, 'the type of a chunk');
        assert.equal(payload.length, 0);
      }
    }
    const expected = pending.isRead && errno === 0 ? pending.length : covered;
    assert.equal(covered, expected, 'a read is answered in full');
    return { cookie, errno, text, data, chunks, extents };
  }
}
