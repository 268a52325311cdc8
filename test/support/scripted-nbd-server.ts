/** An NBD server for one test: an honest handshake unless told otherwise, then a function that answers requests. */
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import {
  Bytes,
  Command,
  HandshakeFlag,
  Info,
  Magic,
  Option,
  OptionReply,
  ReplyType,
  readU16,
  readU32,
  readU64,
  TransmissionFlag,
} from '../../src/base/nbd-protocol.js';

export interface WireRequest {
  readonly command: number;
  readonly flags: number;
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

export interface ScriptedOptions {
  readonly size?: number;
  readonly flags?: number;
  readonly structured?: boolean;
  /** Minimum, preferred and maximum; none are told when absent. */
  readonly blockSizes?: readonly [number, number, number];
  /** Has base:allocation, under this number. */
  readonly allocationContext?: number | undefined;
  /** Answers GO with ERR_UNSUP. */
  readonly withoutGo?: boolean;
  /** Takes the place of the whole conversation. */
  readonly onConnection?: (socket: Socket) => void;
  readonly onRequest?: (request: WireRequest, socket: Socket) => void;
}

export const allFlags =
  TransmissionFlag.HAS_FLAGS |
  TransmissionFlag.SEND_FLUSH |
  TransmissionFlag.SEND_FUA |
  TransmissionFlag.SEND_TRIM |
  TransmissionFlag.SEND_WRITE_ZEROES |
  TransmissionFlag.CAN_MULTI_CONN;

const u16 = (value: number): Buffer => Buffer.from([value >>> 8, value & 0xff]);

function u32(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  values.forEach((value, n) => void bytes.writeUInt32BE(value, n * 4));
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export function greeting(flags: number = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES): Buffer {
  return Buffer.concat([u32(Magic.initHigh, Magic.initLow, Magic.optionHigh, Magic.optionLow), u16(flags)]);
}

export function optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const header = u32(Magic.optionReplyHigh, Magic.optionReplyLow, option, type, data.length);
  return Buffer.concat([header, data]);
}

export const exportInfo = (size: number, flags: number): Buffer =>
  Buffer.concat([u16(Info.EXPORT), u64(size), u16(flags)]);

export const blockSizeInfo = (sizes: readonly number[]): Buffer =>
  Buffer.concat([u16(Info.BLOCK_SIZE), u32(...sizes)]);

export const simpleReply = (request: WireRequest, error = 0, data: Uint8Array = Buffer.alloc(0)): Buffer =>
  Buffer.concat([u32(Magic.simpleReply, error), request.cookie, data]);

export function chunk(
  request: WireRequest,
  type: number,
  data: Uint8Array = Buffer.alloc(0),
  done = true,
): Buffer {
  const header = [u32(Magic.structuredReply), u16(done ? 1 : 0), u16(type), request.cookie, u32(data.length)];
  return Buffer.concat([...header, data]);
}

export const dataChunk = (request: WireRequest, offset: number, data: Uint8Array, done = true): Buffer =>
  chunk(request, ReplyType.OFFSET_DATA, Buffer.concat([u64(offset), data]), done);

export const holeChunk = (request: WireRequest, offset: number, length: number, done = true): Buffer =>
  chunk(request, ReplyType.OFFSET_HOLE, Buffer.concat([u64(offset), u32(length)]), done);

export const errorChunk = (request: WireRequest, error: number, text = '', done = true): Buffer =>
  chunk(request, ReplyType.ERROR, Buffer.concat([u32(error), u16(text.length), Buffer.from(text)]), done);

/** Answers a request as a server of zeroes does. */
export function answerZeroes(request: WireRequest, socket: Socket, structured: boolean): void {
  const data = Buffer.alloc(request.command === Command.READ ? request.length : 0);
  if (!structured) {
    socket.write(simpleReply(request, 0, data));
  } else if (request.command === Command.READ) {
    socket.write(dataChunk(request, request.offset, data));
  } else {
    socket.write(chunk(request, ReplyType.NONE));
  }
}

/** An extent of base:allocation: its length and its flags. */
export type WireExtent = readonly [length: number, flags: number];

export const statusChunk = (
  request: WireRequest,
  extents: readonly WireExtent[],
  options: { context?: number; done?: boolean } = {},
): Buffer =>
  chunk(
    request,
    ReplyType.BLOCK_STATUS,
    Buffer.concat([u32(options.context ?? scriptedContext), ...extents.map((extent) => u32(...extent))]),
    options.done ?? true,
  );

/** The number that scripted servers give base:allocation, unless a test wants another one. */
export const scriptedContext = 0x8000_0007;

export const metaContext = (id: number, name: string): Buffer => Buffer.concat([u32(id), Buffer.from(name)]);

let count = 0;

export class ScriptedServer {
  readonly requests: WireRequest[] = [];
  readonly sockets = new Set<Socket>();
  connections = 0;
  readonly #options: ScriptedOptions;
  #server: Server | undefined;
  #path = '';
  #port = 0;

  constructor(options: ScriptedOptions = {}) {
    this.#options = options;
  }

  get address(): { readonly type: 'unix'; readonly path: string } {
    return { type: 'unix', path: this.#path };
  }

  get inetAddress(): { readonly type: 'inet'; readonly host: string; readonly port: number } {
    return { type: 'inet', host: '127.0.0.1', port: this.#port };
  }

  listen(folder: string): Promise<this> {
    return this.listenAt(join(folder, `scripted-${count++}.sock`));
  }

  async listenAt(path: string): Promise<this> {
    this.#path = path;
    await this.restart();
    return this;
  }

  async listenTcp(): Promise<this> {
    await this.restart();
    return this;
  }

  /** Listens again where it did before. */
  async restart(): Promise<void> {
    const server = createServer((socket) => this.#onConnection(socket));
    this.#server = server;
    await new Promise<void>((resolve) =>
      this.#path === ''
        ? server.listen(this.#port, '127.0.0.1', resolve)
        : server.listen(this.#path, resolve),
    );
    if (this.#path === '') {
      this.#port = (server.address() as AddressInfo).port;
    }
  }

  /** Ends as a killed server does: all connections break. */
  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server?.close(() => resolve()));
    this.dropAll();
    await closed;
  }

  dropAll(): void {
    for (const socket of this.sockets) {
      socket.destroy();
    }
  }

  #onConnection(socket: Socket): void {
    this.connections++;
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.sockets.delete(socket));
    if (this.#options.onConnection !== undefined) {
      this.#options.onConnection(socket);
      return;
    }
    socket.write(greeting());
    let bytes = Buffer.alloc(0);
    let next: (bytes: Buffer) => number = (input) => this.#onFlags(input, () => (next = onOption));
    const onOption = (input: Buffer): number => this.#onOption(input, socket, () => (next = onRequest));
    const onRequest = (input: Buffer): number => this.#onRequest(input, socket);
    socket.on('data', (data) => {
      bytes = Buffer.concat([bytes, data]);
      for (let used = next(bytes); used > 0; used = next(bytes)) {
        bytes = bytes.subarray(used);
      }
    });
  }

  #onFlags(input: Buffer, done: () => void): number {
    if (input.length < Bytes.clientFlags) {
      return 0;
    }
    done();
    return Bytes.clientFlags;
  }

  #onOption(input: Buffer, socket: Socket, done: () => void): number {
    const length = input.length < Bytes.optionHeader ? 0 : readU32(input, 12);
    if (input.length < Bytes.optionHeader + length) {
      return 0;
    }
    const option = readU32(input, 8);
    const { size = 1 << 20, flags = allFlags, structured = true, blockSizes, withoutGo } = this.#options;
    const { allocationContext } = this.#options;
    if (option === Option.STRUCTURED_REPLY) {
      socket.write(optionReply(option, structured ? OptionReply.ACK : OptionReply.ERR_UNSUP));
    } else if (option === Option.SET_META_CONTEXT && allocationContext !== undefined) {
      const context = metaContext(allocationContext, 'base:allocation');
      socket.write(optionReply(option, OptionReply.META_CONTEXT, context));
      socket.write(optionReply(option, OptionReply.ACK));
    } else if (option === Option.EXPORT_NAME) {
      done();
      socket.write(Buffer.concat([u64(size), u16(flags)]));
    } else if (option !== Option.GO || withoutGo === true) {
      socket.write(optionReply(option, OptionReply.ERR_UNSUP));
    } else {
      done();
      socket.write(optionReply(option, OptionReply.INFO, exportInfo(size, flags)));
      if (blockSizes !== undefined) {
        socket.write(optionReply(option, OptionReply.INFO, blockSizeInfo(blockSizes)));
      }
      socket.write(optionReply(option, OptionReply.ACK));
    }
    return Bytes.optionHeader + length;
  }

  #onRequest(input: Buffer, socket: Socket): number {
    if (input.length < Bytes.request) {
      return 0;
    }
    const command = readU16(input, 6);
    const length = readU32(input, 24);
    const whole = Bytes.request + (command === Command.WRITE ? length : 0);
    if (input.length < whole) {
      return 0;
    }
    const request = {
      command,
      flags: readU16(input, 4),
      cookie: Buffer.from(input.subarray(8, 16)),
      offset: readU64(input, 16),
      length,
      payload: Buffer.from(input.subarray(Bytes.request, whole)),
    };
    if (command === Command.DISC) {
      socket.end();
      return whole;
    }
    this.requests.push(request);
    const { onRequest, structured = true } = this.#options;
    if (onRequest === undefined) {
      answerZeroes(request, socket, structured);
    } else {
      onRequest(request, socket);
    }
    return whole;
  }
}
