/** Makes an image (QEMU's blockdev-create). */
import { VduseError } from '../../base/errors.js';
import { type CreateContext, createImage, type ImageOptions } from '../../block/create.js';
import type { Job, JobWork } from './job.js';

export class CreateWork implements JobWork {
  readonly #options: ImageOptions;
  readonly #services: CreateContext['services'];
  readonly #cancelled = new AbortController();

  constructor(options: ImageOptions, services: CreateContext['services']) {
    this.#options = options;
    this.#services = services;
  }

  async run(job: Job): Promise<void> {
    job.total = this.#options.size;
    await createImage(this.#options, {
      services: this.#services,
      signal: this.#cancelled.signal,
      onProgress: async (done, total) => {
        job.current = done;
        job.total = total;
        await job.whilePaused();
      },
    });
  }

  async commit(): Promise<void> {}

  async release(): Promise<void> {}

  stop(): void {
    this.#cancelled.abort(new VduseError('ABORTED', 'Operation canceled'));
  }
}
