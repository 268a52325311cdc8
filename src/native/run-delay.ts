// Hot file: readMs is synchronous, allocates nothing and does not throw.
/** How long the calling thread has waited for a processor while it wanted to run (/proc/thread-self/schedstat). */
import { closeFd, OpenFlag, openFile } from './fd.js';
import { libcCalls } from './ffi.js';

const textBytesMax = 96;
const zero = 0x30;
const space = 0x20;

export class RunDelay {
  readonly #fd: number;
  readonly #text = new Uint8Array(new ArrayBuffer(textBytesMax));

  /** Of the calling thread. Undefined where the kernel does not tell. */
  static open(): RunDelay | undefined {
    try {
      return new RunDelay(openFile('/proc/thread-self/schedstat', OpenFlag.O_RDONLY));
    } catch {
      return undefined;
    }
  }

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** Milliseconds in all, the second of three numbers of nanoseconds and times; a negative number if unknown. */
  readMs(): number {
    const text = this.#text;
    const length = libcCalls.preadBytes(this.#fd, text, textBytesMax, 0);
    let at = 0;
    while (at < length && text[at] !== space) {
      at++;
    }
    let nanoseconds = 0;
    for (at++; at < length && text[at] !== space; at++) {
      nanoseconds = nanoseconds * 10 + text[at] - zero;
    }
    return at < length ? nanoseconds / 1e6 : -1;
  }

  close(): void {
    closeFd(this.#fd);
  }
}
