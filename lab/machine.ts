import { type ChildProcess, spawn } from 'node:child_process';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

import { ConsoleLog } from './console.js';
import { EXIT_MACHINE_FAILED, LabError } from './errors.js';
import { type HostRoot, hostRoot } from './host-root.js';
import { CONSOLE_FD, CONTROL_FD, type MachineShape, OUTPUT_FD, qemuArguments, TERMINAL_FD } from './qemu.js';
import { findTool, searchPath } from './tools.js';

const TAIL_LINES = 40;
const REPORT_MS = 8_000;

/** One running QEMU: its console, its channels, its end. */
export class Machine {
  readonly console = new ConsoleLog();
  readonly output: Socket;
  readonly terminal: Socket;
  /** Settles when QEMU is gone and everything that it sent has been read. */
  readonly ended: Promise<void>;
  /** Settles when the guest is up and asks for a job; fails if the machine ends before. */
  readonly ready: Promise<void>;
  /** The job's exit status; fails if the machine ends before. */
  readonly jobStatus: Promise<number>;

  readonly #control: Socket;
  readonly #process: ChildProcess;
  #complaints = '';

  static start(shape: Omit<MachineShape, 'root'>, neededPaths: readonly string[]): Machine {
    const root = hostRoot(neededPaths);
    return new Machine({ ...shape, root: root.path }, root);
  }

  private constructor(shape: MachineShape, root: HostRoot) {
    const qemu = findTool('qemu-system-x86_64') ?? 'qemu-system-x86_64';
    const [program, ...args] = [...root.prefix, qemu, ...qemuArguments(shape)];
    // A session of its own: Ctrl-C is for the lab, which then ends the machine in order.
    this.#process = spawn(program, args, {
      detached: true,
      env: { ...process.env, PATH: searchPath(), LC_ALL: 'C' },
      stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe', 'pipe', 'pipe'],
    });
    const channel = (fd: number): Socket => {
      const stream = this.#process.stdio[fd] as Socket;
      // Writing to a machine that has just ended is no error of its own: `ended` tells.
      stream.on('error', () => {});
      return stream;
    };
    channel(CONSOLE_FD).on('data', (chunk: Buffer) => {
      this.console.add(chunk);
      if (shape.verbose) process.stderr.write(chunk);
    });
    this.#control = channel(CONTROL_FD);
    this.output = channel(OUTPUT_FD);
    this.terminal = channel(TERMINAL_FD);
    this.#process.stderr?.on('data', (chunk: Buffer) => {
      this.#complaints += chunk.toString();
    });

    this.ended = new Promise((resolve) => {
      this.#process.once('close', () => resolve());
      // With no process there's no close event either.
      this.#process.once('error', (error) => {
        this.#complaints += error.message;
        resolve();
      });
    });
    const lines = createInterface({ input: this.#control });
    const waitFor = (pattern: RegExp): Promise<string> =>
      new Promise((resolve, reject) => {
        lines.on('line', (line) => {
          const match = pattern.exec(line);
          if (match !== null) resolve(match[1]);
        });
        void this.ended.then(() => reject(this.failure(this.#endedEarly())));
      });
    this.ready = waitFor(/^(ready)$/).then(() => {});
    this.jobStatus = waitFor(/^exit (\d+)$/).then(Number);
    // Whoever waits for one of them hears of the failure; the other must not count as unhandled.
    this.ready.catch(() => {});
    this.jobStatus.catch(() => {});
  }

  #endedEarly(): string {
    const panic = this.console.find(/Kernel panic/);
    if (panic !== undefined) return `The guest's kernel panicked: ${panic.replace(/^.*Kernel panic - /, '')}`;
    const said = this.#complaints.trim();
    return `The machine ended before its job did${said === '' ? '.' : `. QEMU said:\n  ${said}`}`;
  }

  failure(message: string, exitStatus: number = EXIT_MACHINE_FAILED, tail?: string): LabError {
    return new LabError(message, { exitStatus, consoleTail: tail ?? this.console.tail(TAIL_LINES) });
  }

  send(line: string): void {
    this.#control.write(`${line}\n`);
  }

  /** Asks the guest who is there and what hangs; gives what it says, whatever that is within a few seconds. */
  async report(): Promise<string> {
    const before = this.console.position;
    const asked = Date.now();
    this.send('report');
    const done = () => this.console.since(before).some((line) => line.startsWith('lab: end of report'));
    while (!done() && Date.now() - asked < REPORT_MS) await sleep(100);
    const said = this.console.since(before).length;
    return this.console.tail(Math.max(TAIL_LINES, said + TAIL_LINES / 2));
  }

  /** Ends the machine and waits for it. A machine has nothing to save, so that nothing can delay this. */
  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.ended;
  }
}
