/** virtio-blk's requests (virtio 1.3, 5.2.6) over a test front-end. */
import { BLK_HEADER, BLK_RANGE, BLK_T } from '../../src/device/blk/blk-protocol.js';
import type { Exchange, FrontEnd } from './front-end.js';
import type { Random } from './random.js';

export interface BlkRequest {
  readonly type: number;
  readonly sector?: number | bigint;
  /** Data for the device. */
  readonly out?: Uint8Array;
  /** Bytes of data that the device is to write before the status. */
  readonly in?: number;
  readonly queue?: number;
  /** Cuts the request into this many buffers at most, anywhere; whole parts when absent. */
  readonly split?: { readonly random: Random; readonly pieces: number };
}

export interface BlkReply {
  readonly status: number;
  readonly data: Uint8Array;
  /** The used element's length. */
  readonly written: number;
}

export interface BlkRange {
  readonly sector: number | bigint;
  readonly sectors: number;
  readonly flags?: number;
}

export function encodeHeader(type: number, sector: number | bigint): Uint8Array {
  const header = new Uint8Array(BLK_HEADER.bytes);
  const view = new DataView(header.buffer);
  view.setUint32(BLK_HEADER.type, type, true);
  view.setBigUint64(BLK_HEADER.sector, BigInt(sector), true);
  return header;
}

export function encodeRanges(ranges: readonly BlkRange[]): Uint8Array {
  const bytes = new Uint8Array(ranges.length * BLK_RANGE.bytes);
  const view = new DataView(bytes.buffer);
  ranges.forEach((range, n) => {
    view.setBigUint64(n * BLK_RANGE.bytes, BigInt(range.sector), true);
    view.setUint32(n * BLK_RANGE.bytes + 8, range.sectors, true);
    view.setUint32(n * BLK_RANGE.bytes + 12, range.flags ?? 0, true);
  });
  return bytes;
}

function cutBytes(bytes: Uint8Array, lengths: readonly number[]): Uint8Array[] {
  let at = 0;
  return lengths.map((length) => {
    at += length;
    return bytes.subarray(at - length, at);
  });
}

export class BlkClient {
  readonly frontEnd: FrontEnd;

  constructor(frontEnd: FrontEnd) {
    this.frontEnd = frontEnd;
  }

  async request(request: BlkRequest): Promise<BlkReply> {
    const { type, sector = 0, out = new Uint8Array(0), in: room = 0, split } = request;
    const header = encodeHeader(type, sector);
    const queue = this.frontEnd.queues[request.queue ?? 0];
    let exchange: Exchange;
    if (split === undefined) {
      exchange = await queue.exchange({
        readable: out.length === 0 ? [header] : [header, out],
        writable: room === 0 ? [1] : [room, 1],
      });
    } else {
      const { random, pieces } = split;
      const readable = Buffer.concat([header, out]);
      exchange = await queue.exchange({
        readable: cutBytes(readable, random.cut(readable.length, random.between(1, pieces))),
        writable: random.cut(room + 1, random.between(1, pieces)),
      });
    }
    const { data, written } = exchange;
    return { status: data[data.length - 1], data: data.subarray(0, data.length - 1), written };
  }

  /** Offsets and lengths in bytes. */
  read(offset: number, length: number, queue = 0): Promise<BlkReply> {
    return this.request({ type: BLK_T.IN, sector: offset / 512, in: length, queue });
  }

  write(offset: number, out: Uint8Array, queue = 0): Promise<BlkReply> {
    return this.request({ type: BLK_T.OUT, sector: offset / 512, out, queue });
  }

  flush(queue = 0): Promise<BlkReply> {
    return this.request({ type: BLK_T.FLUSH, queue });
  }

  discard(ranges: readonly BlkRange[], queue = 0): Promise<BlkReply> {
    return this.request({ type: BLK_T.DISCARD, out: encodeRanges(ranges), queue });
  }

  writeZeroes(ranges: readonly BlkRange[], queue = 0): Promise<BlkReply> {
    return this.request({ type: BLK_T.WRITE_ZEROES, out: encodeRanges(ranges), queue });
  }
}
