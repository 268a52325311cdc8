/** A software disk as an NBD export: the way to it for programs that exist. */
import { LendingPool } from '../memory/lending-pool.js';
import type { NbdBlockSizes, NbdExport, NbdPreparedWrite, NbdReadResult } from '../nbd/nbd-export.js';
import type { BlkFrontend, SharedBuffer } from '../software-vduse/blk-frontend.js';

export interface FrontendNbdOptions {
  /**
   * Payload lies in memory that the device sees as it is, and is copied nowhere between the socket and the
   * image. False: it goes through the bounce region, as the kernel's drivers do it.
   */
  readonly zeroCopy: boolean;
}

const requestBytesMax = 32 << 20;
const poolBytes = 64 << 20;

export class FrontendNbdExport implements NbdExport {
  readonly blockSizes: NbdBlockSizes;
  readonly fua = false;
  /** Virtio's flush covers every request that was completed before, whoever sent it. */
  readonly multiConn = true;
  readonly prepareWrite?: NonNullable<NbdExport['prepareWrite']>;
  readonly flush?: NonNullable<NbdExport['flush']>;
  readonly trim?: NonNullable<NbdExport['trim']>;
  readonly writeZeroes?: NonNullable<NbdExport['writeZeroes']>;
  readonly #disk: BlkFrontend;
  /** Undefined: payload is bounced. */
  readonly #shared: SharedBuffer | undefined;
  readonly #pool: LendingPool;

  constructor(disk: BlkFrontend, options: FrontendNbdOptions) {
    this.#disk = disk;
    this.#shared = options.zeroCopy ? disk.allocateSharedBuffer(poolBytes) : undefined;
    this.#pool = new LendingPool(this.#shared?.bytes ?? Buffer.allocUnsafeSlow(poolBytes));
    this.blockSizes = { minimum: disk.blockSize, preferred: 4096, maximum: requestBytesMax };
    // A missing method is a missing ability, so methods are there as the disk's features are.
    if (!disk.readOnly) {
      this.prepareWrite = (offset, length) => this.#prepareWrite(offset, length);
    }
    if (disk.canFlush) {
      this.flush = () => disk.flush();
    }
    if (disk.canDiscard) {
      this.trim = (offset, length) => disk.discard(offset, length);
    }
    if (disk.canWriteZeroes) {
      this.writeZeroes = (offset, length, { mayUnmap }) =>
        disk.writeZeroes(offset, length, { unmap: mayUnmap });
    }
  }

  get size(): number {
    return this.#disk.size;
  }

  async read(offset: number, length: number): Promise<NbdReadResult> {
    const bytes = await this.#take(length);
    try {
      await this.#disk.read(offset, bytes);
    } catch (error) {
      this.#release(bytes);
      throw error;
    }
    return { parts: [bytes], release: () => this.#release(bytes) };
  }

  /** Gives the shared memory back. The server has ended. */
  async close(): Promise<void> {
    if (this.#shared !== undefined) {
      await this.#disk.removeSharedBuffer(this.#shared);
    }
  }

  #prepareWrite(offset: number, length: number): NbdPreparedWrite | Promise<NbdPreparedWrite> {
    const taken = this.#take(length);
    return taken instanceof Uint8Array
      ? this.#preparedWrite(offset, taken)
      : taken.then((bytes) => this.#preparedWrite(offset, bytes));
  }

  #preparedWrite(offset: number, buffer: Uint8Array): NbdPreparedWrite {
    return {
      buffer,
      submit: async () => {
        try {
          await this.#disk.write(offset, buffer);
        } finally {
          this.#release(buffer);
        }
      },
      cancel: () => this.#release(buffer),
    };
  }

  #take(length: number): Uint8Array | Promise<Uint8Array> {
    return this.#pool.take(length);
  }

  #release(bytes: Uint8Array): void {
    this.#pool.release(bytes);
  }
}
