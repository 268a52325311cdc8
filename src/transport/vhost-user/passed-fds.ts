/** Descriptors that a front-end passes, until somebody takes them. */
import { VduseError } from '../../base/errors.js';
import { closeFds } from './message-stream.js';

/** The descriptors of a message: what nobody takes is closed with it. */
export class PassedFds {
  readonly #fds: number[];

  constructor(fds: readonly number[]) {
    this.#fds = [...fds];
  }

  /** The next one, which is the caller's now. */
  take(): number {
    const fd = this.#fds.shift();
    if (fd === undefined) {
      throw new VduseError('PROTOCOL', 'a message came with too few descriptors');
    }
    return fd;
  }

  close(): void {
    closeFds(this.#fds);
  }
}
