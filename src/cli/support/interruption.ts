/** Signals that end a long command in order, for as long as it runs. */
import { exitStatusOf, InterruptedError } from './errors.js';

const endSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Signals that follow each other faster are one. */
const sameMs = 300;

export class Interruption {
  readonly #controller = new AbortController();
  readonly #handlers = new Map<NodeJS.Signals, () => void>();
  #received: NodeJS.Signals | undefined;
  #count = 0;
  #countedAtMs = Number.NEGATIVE_INFINITY;

  /** The second signal ends the process: what the first one waits for is not waited for any more. */
  static impatient(): Interruption {
    return new Interruption((signal, count) => {
      if (count > 1) {
        process.exit(exitStatusOf(new InterruptedError(signal, '')));
      }
    });
  }

  /** `onSignal` is told of each of them, and how many there have been with it. timeout(1) sends one twice. */
  constructor(onSignal?: (signal: NodeJS.Signals, count: number) => void) {
    for (const signal of endSignals) {
      const handler = (): void => {
        this.#received ??= signal;
        this.#controller.abort(new InterruptedError(signal, `${signal} received`));
        if (performance.now() - this.#countedAtMs >= sameMs) {
          this.#countedAtMs = performance.now();
          this.#count++;
          onSignal?.(signal, this.#count);
        }
      };
      this.#handlers.set(signal, handler);
      process.on(signal, handler);
    }
  }

  /** Aborted by the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The first one. */
  get received(): NodeJS.Signals | undefined {
    return this.#received;
  }

  close(): void {
    for (const [signal, handler] of this.#handlers) {
      process.off(signal, handler);
    }
  }
}
