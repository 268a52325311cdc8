/** How far a long copy is: a bar, the rate of the last seconds and the time that is left, or events for programs. */
import type { CommandContext } from './command.js';
import { formatDuration, formatSize } from './size.js';

/** What the rate is made of: long enough to be calm, short enough to tell of a change. */
const windowMs = 5000;
const redrawMs = 250;
const eventEveryMs = 1000;
/** Where nothing can be drawn over, a line now and then. */
const lineEveryMs = 10_000;
const barWidth = 24;

export interface ProgressSample {
  /** Bytes. */
  readonly done: number;
  readonly total: number;
  readonly bytesPerSecond: number;
  /** Undefined while nothing moves. */
  readonly secondsLeft: number | undefined;
}

export class ProgressMeter {
  readonly #looks: { readonly atMs: number; readonly done: number }[];

  constructor(nowMs: number) {
    this.#looks = [{ atMs: nowMs, done: 0 }];
  }

  /** `total` may grow: a disk that is moved is written meanwhile. */
  sample(place: { readonly done: number; readonly total: number }, nowMs: number): ProgressSample {
    const { done, total } = place;
    const looks = this.#looks;
    looks.push({ atMs: nowMs, done });
    while (looks.length > 2 && nowMs - looks[0].atMs > windowMs) {
      looks.shift();
    }
    const [oldest] = looks;
    const bytesPerSecond = ((done - oldest.done) / Math.max(1, nowMs - oldest.atMs)) * 1000;
    const left = Math.max(0, total - done);
    const secondsLeft = left === 0 ? 0 : bytesPerSecond > 0 ? left / bytesPerSecond : undefined;
    return { done, total, bytesPerSecond, secondsLeft };
  }
}

/** `copying  [=====>                  ]  23%  1.2 GiB of 5 GiB  310 MiB/s  ETA 12 s`. */
export function formatProgress(label: string, sample: ProgressSample): string {
  const { done, total, bytesPerSecond, secondsLeft } = sample;
  const fraction = total === 0 ? 1 : Math.min(1, done / total);
  const filled = Math.floor(fraction * barWidth);
  const bar = `${'='.repeat(filled)}${filled < barWidth ? '>' : ''}`.padEnd(barWidth);
  // Rounded down: 100 % is said when it is so.
  const percent = `${Math.floor(fraction * 100)}%`.padStart(4);
  const eta = secondsLeft === undefined ? '' : `  ETA ${formatDuration(Math.ceil(secondsLeft) * 1000)}`;
  return `${label}  [${bar}] ${percent}  ${formatSize(done)} of ${formatSize(total)}  ${formatSize(Math.round(bytesPerSecond))}/s${eta}`;
}

export interface ProgressOptions {
  /** What is done, for people: `copying`. */
  readonly label: string;
  /** Prints events instead, with `phase`. */
  readonly json: boolean;
  readonly total: number;
}

/** Shows how far it is, from its construction to `close`. */
export class Progress {
  #place: { done: number; total: number };
  readonly #context: CommandContext;
  readonly #options: ProgressOptions;
  readonly #meter = new ProgressMeter(performance.now());
  readonly #timer: NodeJS.Timeout;

  constructor(context: CommandContext, options: ProgressOptions) {
    this.#context = context;
    this.#options = options;
    this.#place = { done: 0, total: options.total };
    const everyMs = options.json ? eventEveryMs : context.terminal.interactive ? redrawMs : lineEveryMs;
    this.#timer = setInterval(() => this.#show(), everyMs);
  }

  update(done: number, total = this.#place.total): void {
    this.#place = { done, total };
  }

  get done(): number {
    return this.#place.done;
  }

  close(): void {
    clearInterval(this.#timer);
    if (this.#options.json) {
      this.#show();
    }
    this.#context.terminal.live('');
  }

  #show(): void {
    const { terminal } = this.#context;
    const { json, label } = this.#options;
    const sample = this.#meter.sample(this.#place, performance.now());
    if (json) {
      const bytesPerSecond = Math.round(sample.bytesPerSecond);
      printEvent(this.#context, 'progress', { phase: label, ...sample, bytesPerSecond });
    } else if (terminal.interactive) {
      terminal.live(formatProgress(label, sample));
    } else {
      terminal.say(formatProgress(label, sample));
    }
  }
}

/** A line of JSON; what is not known is null. */
export function printEvent(
  context: CommandContext,
  event: string,
  fields: Readonly<Record<string, unknown>>,
): void {
  const members = Object.entries(fields).map(([key, value]) => [key, value ?? null]);
  context.print(`${JSON.stringify({ event, ...Object.fromEntries(members) })}\n`);
}
