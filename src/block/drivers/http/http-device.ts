/** An HTTP image as a block device, with readahead for whoever reads it from front to back. */
import type { BlockDevice } from '../../block-device.js';
import type { HttpImage } from './http-image.js';

const sectorBytes = 512;
/** Parts of the file that are kept, or on their way, for reads to come. */
const segmentsMax = 8;
/** Readers from front to back that are told apart. */
const streamsMax = 8;

interface Segment {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly arrival: Promise<void>;
}

export class HttpDevice implements BlockDevice {
  /** The file's, rounded up to a sector: what is beyond the file's end reads as zeroes. */
  readonly size: number;
  readonly #image: HttpImage;
  readonly #readahead: number;
  readonly #onClose: () => void;
  /** The oldest first. */
  readonly #segments: Segment[] = [];
  /** Where the latest reads ended. */
  readonly #ends: number[] = [];

  constructor(image: HttpImage, options: { readahead: number; onClose: () => void }) {
    this.#image = image;
    this.#readahead = options.readahead;
    this.#onClose = options.onClose;
    this.size = Math.ceil(image.identity.size / sectorBytes) * sectorBytes;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    const inFile = Math.min(buffer.length, Math.max(0, this.#image.identity.size - offset));
    buffer.fill(0, inFile);
    if (inFile > 0) {
      await this.#read(offset, buffer.subarray(0, inFile));
    }
  }

  async close(): Promise<void> {
    this.#segments.length = 0;
    this.#onClose();
  }

  async #read(offset: number, buffer: Uint8Array): Promise<void> {
    const goesOn = this.#noteEnd(offset, offset + buffer.length);
    const known = this.#segments.find(
      (segment) =>
        segment.offset <= offset && offset + buffer.length <= segment.offset + segment.bytes.length,
    );
    if (known === undefined && (!goesOn || buffer.length >= this.#readahead)) {
      await this.#image.read(offset, buffer);
      return;
    }
    const segment = known ?? this.#fetch(offset, buffer.length + this.#readahead);
    await segment.arrival;
    const at = offset - segment.offset;
    buffer.set(segment.bytes.subarray(at, at + buffer.length));
  }

  /** Whether the read goes on where an earlier one ended. */
  #noteEnd(start: number, end: number): boolean {
    const stream = this.#ends.indexOf(start);
    if (stream >= 0) {
      this.#ends.splice(stream, 1);
    } else if (this.#ends.length === streamsMax) {
      this.#ends.shift();
    }
    this.#ends.push(end);
    return stream >= 0;
  }

  #fetch(offset: number, length: number): Segment {
    const bytes = new Uint8Array(Math.min(length, this.#image.identity.size - offset));
    const segment = { offset, bytes, arrival: this.#image.read(offset, bytes) };
    if (this.#segments.length === segmentsMax) {
      this.#segments.shift();
    }
    this.#segments.push(segment);
    segment.arrival.catch(() => {
      const at = this.#segments.indexOf(segment);
      if (at >= 0) {
        this.#segments.splice(at, 1);
      }
    });
    return segment;
  }
}
