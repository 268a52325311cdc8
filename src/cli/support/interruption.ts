/** Signals that end a long command in order, for as long as it runs. */
import { exitStatusOf, InterruptedError } from './errors.js';

const endSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

export class Interruption {
  readonly #controller = new AbortController();
  readonly #handlers = new Map<NodeJS.Signals, () => void>();
  #received: NodeJS.Signals | undefined;

  /** The second signal ends the process: what the first one waits for is not waited for any more. */
  static impatient(): Interruption {
    let count = 0;
    return new Interruption((signal) => {
      count++;
      if (count > 1) {
        process.exit(exitStatusOf(new InterruptedError(signal, '')));
      }
    });
  }

  /** `onSignal` is told of each of them, also of those behind the first. */
  constructor(onSignal?: (signal: NodeJS.Signals) => void) {
    for (const signal of endSignals) {
      const handler = (): void => {
        this.#received ??= signal;
        this.#controller.abort(new InterruptedError(signal, `${signal} received`));
        onSignal?.(signal);
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
