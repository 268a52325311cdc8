// Hot file: synchronous, no allocation per request, no throw after construction.
/**
 * NBD as an engine: makes wire requests of block requests, several where one is longer than the server takes, and a
 * flush after those that are to be durable where the server has no FUA.
 */
import { Command, CommandFlag, TransmissionFlag } from '../../../base/nbd-protocol.js';
import { Errno } from '../../../native/errno.js';
import type { Reactor } from '../../../reactor/reactor.js';
import {
  type BlockCompletionSink,
  type BlockEngine,
  BlockFlag,
  BlockOp,
  type NbdEngineSpec,
} from '../../engine.js';
import type { RequestTable } from '../../request-table.js';
import { NbdConnection } from './nbd-connection.js';
import type { WireClient } from './wire-clients.js';
import { WireRequests } from './wire-requests.js';

/** A request without payload has its length in 32 bits; this is a multiple of every block size. */
const rangeBytesMax = 1 << 30;

export class NbdEngine implements BlockEngine, WireClient {
  readonly requests: WireRequests;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #connection: NbdConnection;
  readonly #index: number;
  readonly #payloadBytesMax: number;
  readonly #canFua: boolean;
  readonly #canFlush: boolean;
  readonly #canTrim: boolean;
  readonly #canWriteZeroes: boolean;
  /** Bytes of the slot's request that are done. */
  readonly #done: Float64Array;

  constructor(spec: NbdEngineSpec, table: RequestTable, sink: BlockCompletionSink, reactor: Reactor) {
    const { flags } = spec;
    this.#table = table;
    this.#sink = sink;
    this.#payloadBytesMax = spec.payloadBytesMax;
    this.#canFlush = (flags & TransmissionFlag.SEND_FLUSH) !== 0 && !spec.noFlush;
    this.#canFua = (flags & TransmissionFlag.SEND_FUA) !== 0 && !spec.noFlush;
    this.#canTrim = (flags & TransmissionFlag.SEND_TRIM) !== 0 && !spec.ignoreDiscard;
    this.#canWriteZeroes = (flags & TransmissionFlag.SEND_WRITE_ZEROES) !== 0;
    this.#done = new Float64Array(table.capacity);
    this.requests = new WireRequests(table);
    this.#connection = NbdConnection.attach(spec, reactor);
    this.#index = this.#connection.add(this);
  }

  submit(slot: number): void {
    this.#done[slot] = 0;
    switch (this.#table.op[slot]) {
      case BlockOp.FLUSH:
        if (this.#canFlush) {
          this.#flush(slot);
        } else {
          this.#sink.onBlockComplete(slot, 0);
        }
        break;
      case BlockOp.DISCARD:
        if (this.#canTrim) {
          this.#next(slot);
        } else {
          this.#sink.onBlockComplete(slot, 0);
        }
        break;
      case BlockOp.STATUS:
        this.#askStatus(slot);
        break;
      default:
        this.#next(slot);
        break;
    }
  }

  cancel(): void {
    this.#connection.cancel(this.#index, this.requests);
  }

  abandon(): void {
    this.cancel();
  }

  close(): void {
    this.#connection.remove(this.#index);
    this.requests.close();
  }

  // WireClient

  onWireComplete(slot: number, result: number): void {
    const command = this.requests.command[slot];
    if (result < 0 || command === Command.FLUSH) {
      this.#sink.onBlockComplete(slot, result);
      return;
    }
    this.#done[slot] += this.requests.length[slot];
    if (this.#done[slot] < this.#table.length[slot]) {
      this.#next(slot);
    } else if (this.#isDurableByFlush(slot, command)) {
      this.#flush(slot);
    } else {
      this.#sink.onBlockComplete(slot, 0);
    }
  }

  #isDurableByFlush(slot: number, command: number): boolean {
    const writes = command === Command.WRITE || command === Command.WRITE_ZEROES;
    const wanted = (this.#table.flags[slot] & BlockFlag.FUA) !== 0;
    return writes && wanted && this.#canFlush && !this.#canFua;
  }

  #flush(slot: number): void {
    this.requests.set(slot, Command.FLUSH, 0, -this.#table.offset[slot], 0);
    this.#submit(slot);
  }

  /** What the first answer does not cover is asked for again by whoever wants it. */
  #askStatus(slot: number): void {
    if (!this.#connection.mayAskStatus) {
      this.#sink.onBlockComplete(slot, -Errno.EOPNOTSUPP);
      return;
    }
    const length = Math.min(this.#table.length[slot], rangeBytesMax);
    this.#table.length[slot] = length;
    this.requests.set(slot, Command.BLOCK_STATUS, 0, 0, length);
    this.#submit(slot);
  }

  /** Starts the request, or its next part. */
  #next(slot: number): void {
    const table = this.#table;
    const start = this.#done[slot];
    const left = table.length[slot] - start;
    const fua = this.#canFua && (table.flags[slot] & BlockFlag.FUA) !== 0 ? CommandFlag.FUA : 0;
    const payload = Math.min(left, this.#payloadBytesMax);
    switch (table.op[slot]) {
      case BlockOp.READ:
        this.requests.set(slot, Command.READ, 0, start, payload);
        break;
      case BlockOp.WRITE:
        this.requests.set(slot, Command.WRITE, fua, start, payload);
        break;
      case BlockOp.DISCARD:
        this.requests.set(slot, Command.TRIM, 0, start, Math.min(left, rangeBytesMax));
        break;
      default:
        if (this.#canWriteZeroes) {
          const keep = (table.flags[slot] & BlockFlag.MAY_UNMAP) !== 0 ? 0 : CommandFlag.NO_HOLE;
          this.requests.set(slot, Command.WRITE_ZEROES, fua | keep, start, Math.min(left, rangeBytesMax));
        } else {
          this.requests.set(slot, Command.WRITE, fua, start, payload);
          this.requests.fromZeroes[slot] = 1;
        }
        break;
    }
    this.#submit(slot);
  }

  #submit(slot: number): void {
    this.#connection.submit(((this.#index << 16) | slot) >>> 0);
  }
}
