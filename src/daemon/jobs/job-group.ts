/** Jobs that take effect together or not at all (QEMU's transactions with completion-mode=grouped). */
import type { Job } from './job.js';

export class JobGroup {
  readonly #jobs: Job[] = [];
  #waiting = 0;
  #goOn: () => void = () => undefined;
  readonly #allWait = new Promise<void>((goOn) => {
    this.#goOn = goOn;
  });

  add(job: Job): void {
    this.#jobs.push(job);
  }

  /** Somebody has to say when they take effect. */
  get needsFinalize(): boolean {
    return this.#jobs.some(({ autoFinalize }) => !autoFinalize);
  }

  /** A job has done its work. Settles when all have. */
  arrived(): Promise<void> {
    this.#waiting++;
    if (this.#waiting === this.#jobs.length) {
      this.#goOn();
    }
    return this.#allWait;
  }

  finalize(): void {
    for (const job of this.#jobs) {
      job.setFinalized();
    }
  }

  /** One has failed: the others are cancelled. */
  failed(): void {
    for (const job of this.#jobs) {
      job.cancelWithGroup();
    }
  }
}
