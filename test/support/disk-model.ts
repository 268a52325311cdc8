/** What a disk should hold, as an array: the naive side of a comparison. */
import assert from 'node:assert/strict';

const sectorBytes = 512;

export class DiskModel {
  #bytes: Uint8Array;
  /** Sectors that were discarded: 5.2.6.2 lets them read as before or as zeroes, until they are written. */
  #discarded: Uint8Array;

  constructor(size: number) {
    this.#bytes = new Uint8Array(size);
    this.#discarded = new Uint8Array(size / sectorBytes);
  }

  get size(): number {
    return this.#bytes.length;
  }

  write(offset: number, data: Uint8Array): void {
    this.#bytes.set(data, offset);
    this.#mark(offset, data.length, 0);
  }

  zero(offset: number, length: number): void {
    this.#bytes.fill(0, offset, offset + length);
    this.#mark(offset, length, 0);
  }

  discard(offset: number, length: number): void {
    this.#mark(offset, length, 1);
  }

  resize(size: number): void {
    const bytes = new Uint8Array(size);
    bytes.set(this.#bytes.subarray(0, size));
    const discarded = new Uint8Array(size / sectorBytes);
    discarded.set(this.#discarded.subarray(0, size / sectorBytes));
    this.#bytes = bytes;
    this.#discarded = discarded;
  }

  check(offset: number, data: Uint8Array, what: string): void {
    const expected = this.#bytes.subarray(offset, offset + data.length);
    if (Buffer.from(data.buffer, data.byteOffset, data.length).equals(expected)) {
      return;
    }
    for (let at = 0; at < data.length; at += sectorBytes) {
      const sector = data.subarray(at, at + sectorBytes);
      const same = Buffer.from(sector).equals(expected.subarray(at, at + sectorBytes));
      const mayBeZero = this.#discarded[(offset + at) / sectorBytes] === 1;
      assert.ok(
        same || (mayBeZero && sector.every((byte) => byte === 0)),
        `${what}: sector at ${offset + at}`,
      );
    }
  }

  #mark(offset: number, length: number, value: number): void {
    this.#discarded.fill(value, offset / sectorBytes, (offset + length) / sectorBytes);
  }
}
