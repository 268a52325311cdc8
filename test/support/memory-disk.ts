/** A user's block driver over an array, which keeps a record, and fails or hangs when asked. */
import type { BlockDevice } from '../../src/block/block-device.js';

export type DiskCall = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'resize' | 'close';

export interface MemoryDiskOptions {
  readonly size: number;
  readonly blockSize?: number;
  /** Abilities that the driver does not have. */
  readonly without?: readonly ('write' | 'flush' | 'discard' | 'writeZeroes' | 'resize')[];
}

export class MemoryDisk implements BlockDevice {
  bytes: Uint8Array;
  readonly blockSize?: number;
  /** Every call, with its offset and length. */
  readonly calls: { call: DiskCall; offset: number; length: number }[] = [];
  /** Set, every call waits for it before it does anything. */
  gate: Promise<void> | undefined;
  /** Set, every call ends with it. */
  failure: Error | undefined;
  // Own properties, so that one that is absent is an ability less.
  readonly write?: (offset: number, buffer: Uint8Array) => Promise<void>;
  readonly flush?: () => Promise<void>;
  readonly discard?: (offset: number, length: number) => Promise<void>;
  readonly writeZeroes?: (offset: number, length: number) => Promise<void>;
  readonly resize?: (size: number) => Promise<void>;

  constructor(options: MemoryDiskOptions) {
    this.bytes = new Uint8Array(options.size);
    if (options.blockSize !== undefined) {
      this.blockSize = options.blockSize;
    }
    const has = (ability: 'write' | 'flush' | 'discard' | 'writeZeroes' | 'resize'): boolean =>
      options.without?.includes(ability) !== true;
    if (has('write')) {
      this.write = async (offset, buffer) => {
        await this.#enter('write', offset, buffer.length);
        this.bytes.set(buffer, offset);
      };
    }
    if (has('flush')) {
      this.flush = () => this.#enter('flush', 0, 0);
    }
    if (has('discard')) {
      this.discard = (offset, length) => this.#enter('discard', offset, length);
    }
    if (has('writeZeroes')) {
      this.writeZeroes = async (offset, length) => {
        await this.#enter('writeZeroes', offset, length);
        this.bytes.fill(0, offset, offset + length);
      };
    }
    if (has('resize')) {
      this.resize = async (size) => {
        await this.#enter('resize', 0, size);
        const bytes = new Uint8Array(size);
        bytes.set(this.bytes.subarray(0, size));
        this.bytes = bytes;
      };
    }
  }

  get size(): number {
    return this.bytes.length;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#enter('read', offset, buffer.length);
    buffer.set(this.bytes.subarray(offset, offset + buffer.length));
  }

  async close(): Promise<void> {
    this.calls.push({ call: 'close', offset: 0, length: 0 });
  }

  count(call: DiskCall): number {
    return this.calls.filter((one) => one.call === call).length;
  }

  async #enter(call: DiskCall, offset: number, length: number): Promise<void> {
    this.calls.push({ call, offset, length });
    await this.gate;
    if (this.failure !== undefined) {
      throw this.failure;
    }
  }
}
