/** Programs of the machine, run without blocking: this process may be the one that serves their disk. */
import { type ChildProcess, spawn } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * How many times longer than on a quiet host everything may take. An emulated machine that shares its processors
 * is several times slower, and a limit is to end a hang, not to measure.
 */
export const patience = 4;

export interface Finished {
  /** The exit status; 128 and the signal's number where one ended it. */
  readonly status: number;
  /** stdout and stderr in one. */
  readonly output: string;
}

const signalNumbers: Readonly<Record<string, number>> = { SIGKILL: 9, SIGTERM: 15, SIGINT: 2, SIGABRT: 6 };

export class RunningProgram {
  readonly finished: Promise<Finished>;
  readonly #child: ChildProcess;
  #output = '';

  constructor(program: string, args: readonly string[]) {
    this.#child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.#output += text;
      });
    }
    this.finished = new Promise((resolve, reject) => {
      this.#child.once('error', reject);
      this.#child.once('close', (code, signal) => {
        resolve({ status: code ?? 128 + (signalNumbers[signal ?? ''] ?? 0), output: this.#output });
      });
    });
    // Whoever waits for it gets the error; nobody has to.
    this.finished.catch(() => {});
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** What it has said so far. */
  get output(): string {
    return this.#output;
  }

  get running(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** Waits until the output has a match of the pattern; fails when the program ends before. */
  async says(pattern: RegExp, timeoutMs = 30_000): Promise<RegExpMatchArray> {
    const deadline = performance.now() + timeoutMs * patience;
    for (;;) {
      const match = this.#output.match(pattern);
      if (match !== null) {
        return match;
      }
      if (!this.running || performance.now() > deadline) {
        throw new Error(`nothing like ${pattern} in the output of pid ${this.pid}:\n${this.#output}`);
      }
      await sleep(20);
    }
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Ends it if it still runs, and waits until it has. */
  async end(name: NodeJS.Signals = 'SIGTERM'): Promise<Finished> {
    this.signal(name);
    return this.finished;
  }
}

/** Starts a program and goes on. Fails only where there is no such program. */
export async function start(program: string, args: readonly string[]): Promise<RunningProgram> {
  const running = new RunningProgram(program, args);
  if (running.pid === 0) {
    await running.finished;
  }
  return running;
}

/** Runs a line of the shell to its end, whatever that is. */
export async function attempt(line: string): Promise<Finished> {
  return (await start('/bin/sh', ['-c', line])).finished;
}

/** Runs a line of the shell that must succeed. Returns its output without the last newline. */
export async function sh(line: string): Promise<string> {
  const { status, output } = await attempt(line);
  if (status !== 0) {
    throw new Error(`exit status ${status} of: ${line}\n${output}`);
  }
  return output.trimEnd();
}

/** Starts a node script of this directory; it prints lines of its own. */
export async function startScript(name: string, args: readonly string[] = []): Promise<RunningProgram> {
  const path = new URL(name, import.meta.url).pathname;
  return start(process.execPath, ['--enable-source-maps', path, ...args]);
}

/** Waits until the condition holds, and fails with `what` when it doesn't in time. */
export async function waitFor(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 20_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs * patience;
  while (!(await condition())) {
    if (performance.now() > deadline) {
      throw new Error(`not so after ${timeoutMs / 1000} s: ${what}`);
    }
    await sleep(20);
  }
}
