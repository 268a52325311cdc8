/** What a command says to people: on standard error, with a last line that is drawn over and over. */
import { createLogUpdate } from 'log-update';
import { formatDuration } from './size.js';

/** What takes longer shows that it goes on. */
const QUIET_MS = 2000;
const REDRAW_MS = 500;
/** Where nothing can be drawn over, a line now and then. */
const LINE_EVERY_MS = 10_000;

/** What the terminal needs of a stream. */
export type TerminalStream = NodeJS.WritableStream & {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
};

const styles = { bold: 1, red: 31, green: 32, yellow: 33 } as const;
export type Style = keyof typeof styles;

export class Terminal {
  /** Whether a line can be drawn over. */
  readonly interactive: boolean;
  readonly #stream: TerminalStream;
  readonly #colours: boolean;
  readonly #update: ReturnType<typeof createLogUpdate> | undefined;
  #live = '';

  constructor(stream: TerminalStream, environment: NodeJS.ProcessEnv = process.env) {
    this.#stream = stream;
    this.interactive = stream.isTTY === true && environment['TERM'] !== 'dumb';
    // https://no-color.org: present and not empty.
    this.#colours = this.interactive && (environment['NO_COLOR'] ?? '') === '';
    // The cursor stays: hiding it would need handlers for every way in which a process can end.
    this.#update = this.interactive ? createLogUpdate(sized(stream), { showCursor: true }) : undefined;
  }

  style(style: Style, text: string): string {
    return this.#colours ? `\x1b[${styles[style]}m${text}\x1b[0m` : text;
  }

  /** Text that stays, above the live line. */
  say(text: string): void {
    if (this.#update === undefined || this.#live === '') {
      this.#stream.write(`${text}\n`);
      return;
    }
    this.#update.clear();
    this.#stream.write(`${text}\n`);
    this.#update(this.#live);
  }

  /** Replaces the live line; an empty text removes it. Nothing where nothing can be drawn over. */
  live(text: string): void {
    this.#live = text;
    if (text === '') {
      this.#update?.clear();
    } else {
      this.#update?.(text);
    }
  }

  /** Waits for the work, and after two seconds says what for and for how long. */
  async during<T>(label: string | (() => string), work: Promise<T>): Promise<T> {
    const started = Date.now();
    const text = (): string => {
      const name = typeof label === 'string' ? label : label();
      return `${name} … ${formatDuration(Date.now() - started)}`;
    };
    let nextLineMs = QUIET_MS;
    const timer = setInterval(() => {
      const elapsedMs = Date.now() - started;
      if (elapsedMs < nextLineMs) {
        return;
      }
      if (this.interactive) {
        this.live(text());
      } else {
        this.say(text());
        nextLineMs += LINE_EVERY_MS;
      }
    }, REDRAW_MS);
    try {
      return await work;
    } finally {
      clearInterval(timer);
      this.live('');
    }
  }
}

/** A terminal that does not know its size, such as a serial line or one of `docker exec -t`, says 0: nothing would fit on it. */
function sized(stream: TerminalStream): TerminalStream {
  return new Proxy(stream, {
    get: (target, key) => {
      const value: unknown = Reflect.get(target, key, target);
      if (key === 'columns' || key === 'rows') {
        return value === 0 ? undefined : value;
      }
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}
