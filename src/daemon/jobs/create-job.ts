/** Makes an image file (QEMU's blockdev-create of the driver file). */
import { closeSync, constants, ftruncateSync, openSync } from 'node:fs';
import { VduseError } from '../../base/errors.js';
import { lockImage } from '../../block/drivers/image-lock.js';
import { fallocate } from '../../native/fd.js';
import { systemCallError } from '../../native/ffi.js';
import type { Job, JobWork } from './job.js';

export interface CreateFileOptions {
  readonly filename: string;
  /** Bytes, rounded up to a whole sector. */
  readonly size: number;
  /** `falloc`: the file system sets the blocks aside. */
  readonly preallocation?: 'off' | 'falloc';
}

const sectorBytes = 512;
const mode = 0o644;

export class CreateFileWork implements JobWork {
  readonly #options: CreateFileOptions;

  constructor(options: CreateFileOptions) {
    this.#options = options;
  }

  async run(job: Job): Promise<void> {
    const { filename, preallocation = 'off' } = this.#options;
    const size = Math.ceil(this.#options.size / sectorBytes) * sectorBytes;
    job.total = size;
    const fd = this.#open();
    try {
      // Whoever has the image open would find it empty under his feet.
      lockImage({ fd, filename, writable: true, mode: 'auto' });
      ftruncateSync(fd, 0);
      ftruncateSync(fd, size);
      const result = preallocation === 'falloc' && size > 0 ? fallocate(fd, 0, 0, size) : 0;
      if (result !== 0) {
        throw systemCallError('fallocate', -result, filename);
      }
    } finally {
      closeSync(fd);
    }
    job.current = size;
  }

  async commit(): Promise<void> {}

  async release(): Promise<void> {}

  /** It is done before anybody could ask. */
  stop(): void {}

  #open(): number {
    const { filename } = this.#options;
    try {
      return openSync(filename, constants.O_RDWR | constants.O_CREAT | constants.O_NONBLOCK, mode);
    } catch (error) {
      throw new VduseError('SYSTEM_CALL', `Could not create '${filename}'`, { cause: error });
    }
  }
}
