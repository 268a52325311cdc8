import { mkdirSync, realpathSync } from 'node:fs';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { type Accelerator, chooseAccelerator, rememberAccelerator } from './accelerator.js';
import { checkoutRoot } from './checkout.js';
import { EXIT_MACHINE_FAILED, EXIT_TIMED_OUT, LabError } from './errors.js';
import { buildInitramfs } from './initramfs.js';
import { type Job, sendJob } from './job.js';
import { type Kernel, type KernelChannel, prepareKernel } from './kernel.js';
import { Machine } from './machine.js';
import { say, withProgress } from './progress.js';
import { attachTerminal, terminalSize } from './terminal.js';
import { requireTools } from './tools.js';

export interface LabOptions {
  /** Program and arguments; or a line for the guest's /bin/sh. */
  command: readonly string[] | string;
  kernel?: KernelChannel;
  /** Processors of the machine. One is right for whatever is timed, two for races. */
  smp?: number;
  memoryMib?: number;
  /** How long the command may take, from its start; 0 for ever. */
  timeoutMs?: number;
  /** How long the machine may take until it asks for the command. */
  bootTimeoutMs?: number;
  env?: Readonly<Record<string, string>>;
  /** Where the command starts; the checkout if not given. */
  cwd?: string;
  /** A host directory that the guest can write to, at the same path; also in its VDUSE_LAB_RESULTS. */
  results?: string;
  accelerator?: Accelerator;
  /**
   * Back-ends outside of QEMU, those of vhost-user devices, are to reach the machine's memory. `huge`: in huge pages
   * of 2 MiB, of which the host must have enough.
   */
  sharedMemory?: boolean | 'huge';
  /** More arguments for QEMU, such as devices; ids that the lab does not use. */
  qemuArguments?: readonly string[];
  /** Gets stdout and stderr as they come. The guest waits while a returned promise is pending. */
  onOutput?: (chunk: Buffer) => void | Promise<void>;
  /** False for output that may be larger than memory: `output` stays empty then. */
  keepOutput?: boolean;
  /** Ends the machine. */
  signal?: AbortSignal;
  /** Join the command to this process's terminal instead of collecting its output. */
  interactive?: boolean;
  /** Say when the machine is up, and the like, on stderr. */
  announce?: boolean;
  /** Show the kernel's console on stderr. */
  verbose?: boolean;
}

export interface LabResult {
  exitStatus: number;
  /** stdout and stderr in one. */
  output: string;
  consoleTail: string;
}

const BOOT_TIMEOUT_MS = 120_000;
/** A machine with KVM is up in two seconds; one on a KVM that doesn't work never is. */
const KVM_TRIAL_MS = 20_000;
const COMMAND_TIMEOUT_MS = 20 * 60_000;

/**
 * Boots a machine with a real VDUSE kernel and the host's files, runs the command in it, and ends the machine.
 * Fails with LabError when the machine doesn't boot, dies or takes too long; a command that fails is a result.
 */
export async function runInLab(options: LabOptions): Promise<LabResult> {
  if (process.arch !== 'x64') {
    throw new LabError(`The lab runs the host's programs on an x86-64 kernel; this host is ${process.arch}.`);
  }
  requireTools(['qemu-system-x86_64', 'setpriv', 'unshare'], 'The lab');
  const kernel = await prepareKernel(options.kernel ?? 'stable');
  options.signal?.throwIfAborted();

  const machine = await bootMachine(kernel, options);
  try {
    return await runJob(machine, options);
  } finally {
    await machine.kill();
  }
}

async function bootMachine(kernel: Kernel, options: LabOptions): Promise<Machine> {
  if (options.accelerator !== undefined) return await bootWith(kernel, options, options.accelerator);
  const { accelerator, proven } = chooseAccelerator();
  if (proven) return await bootWith(kernel, options, accelerator);
  try {
    const machine = await bootWith(kernel, { ...options, bootTimeoutMs: KVM_TRIAL_MS }, accelerator);
    rememberAccelerator(accelerator);
    return machine;
  } catch (error) {
    options.signal?.throwIfAborted();
    say(`this machine's /dev/kvm doesn't boot Linux ${kernel.version}; using emulation from now on`);
    const machine = await bootWith(kernel, options, 'tcg');
    rememberAccelerator('tcg');
    if (options.verbose)
      say(`the trial of KVM ended with: ${error instanceof Error ? error.message : error}`);
    return machine;
  }
}

async function bootWith(kernel: Kernel, options: LabOptions, accelerator: Accelerator): Promise<Machine> {
  const checkout = checkoutRoot();
  const { smp = 1, memoryMib = 2048, bootTimeoutMs = BOOT_TIMEOUT_MS } = options;
  const results = options.results === undefined ? undefined : resolve(options.results);
  if (results !== undefined) mkdirSync(results, { recursive: true });

  const started = performance.now();
  const machine = Machine.start(
    {
      kernel,
      initramfs: buildInitramfs(kernel, checkout),
      results: results === undefined ? undefined : realpathSync(results),
      accelerator,
      smp,
      memoryMib,
      verbose: options.verbose ?? false,
      sharedMemory: options.sharedMemory ?? false,
      extra: options.qemuArguments ?? [],
    },
    [checkout, realpathSync(process.execPath)],
  );
  const shape = `${accelerator.toUpperCase()}, ${smp} CPU${smp === 1 ? '' : 's'}, ${memoryMib} MiB`;
  try {
    const ready = () =>
      limited(machine.ready, bootTimeoutMs, options.signal, async () =>
        machine.failure(
          `Linux ${kernel.version} wasn't up after ${bootTimeoutMs / 1000} s (${shape}). ` +
            'With --verbose its kernel tells more.',
        ),
      );
    await (options.announce ? withProgress(`booting Linux ${kernel.version} (${shape})`, ready) : ready());
  } catch (error) {
    await machine.kill();
    throw error;
  }
  if (options.announce) {
    say(`Linux ${kernel.version} up after ${((performance.now() - started) / 1000).toFixed(1)} s (${shape})`);
  }
  return machine;
}

async function runJob(machine: Machine, options: LabOptions): Promise<LabResult> {
  const chunks: Buffer[] = [];
  machine.output.on('data', (chunk: Buffer) => {
    if (options.keepOutput ?? true) chunks.push(chunk);
    const pending = options.onOutput?.(chunk);
    if (pending instanceof Promise) {
      // The port fills up behind this, and the command in the guest waits like on any full pipe.
      machine.output.pause();
      void pending.finally(() => machine.output.resume());
    }
  });

  const job: Job = {
    command: options.command,
    cwd: options.cwd ?? checkoutRoot(),
    env: options.env ?? {},
    results: options.results === undefined ? undefined : realpathSync(options.results),
    terminal: options.interactive ? terminalSize() : undefined,
  };
  const leave = new AbortController();
  const signals = [leave.signal, ...(options.signal === undefined ? [] : [options.signal])];
  const detach = options.interactive
    ? attachTerminal(machine, () =>
        leave.abort(new LabError('Left by Ctrl-], three times.', { exitStatus: 130 })),
      )
    : () => {};
  try {
    sendJob(machine, job);
    const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
    const exitStatus = await limited(machine.jobStatus, timeoutMs, AbortSignal.any(signals), async () => {
      const report = await machine.report();
      return machine.failure(
        `The command was still running after ${timeoutMs / 1000} s.`,
        EXIT_TIMED_OUT,
        report,
      );
    });
    // The guest sends the status after the last output, but on another channel: ending the machine closes both.
    await machine.kill();
    return { exitStatus, output: Buffer.concat(chunks).toString(), consoleTail: machine.console.tail(40) };
  } catch (error) {
    if (!(error instanceof LabError)) throw error;
    const { message, exitStatus, consoleTail } = error;
    throw new LabError(message, {
      exitStatus,
      consoleTail,
      output: Buffer.concat(chunks).toString(),
      cause: error,
    });
  } finally {
    detach();
  }
}

/** Waits for `promise` until the time is up (then `onTimeout` makes the error) or until the signal. */
async function limited<T>(
  promise: Promise<T>,
  timeoutMs: number,
  signal: AbortSignal | undefined,
  onTimeout: () => Promise<LabError>,
): Promise<T> {
  const done = new AbortController();
  const timeout = async (): Promise<never> => {
    if (timeoutMs > 0) await sleep(timeoutMs, undefined, { signal: done.signal });
    else await new Promise((_, reject) => done.signal.addEventListener('abort', reject));
    throw await onTimeout();
  };
  const aborted = new Promise<never>((_, reject) => {
    const fail = () =>
      reject(
        signal?.reason instanceof LabError
          ? signal.reason
          : new LabError('The lab was stopped.', { exitStatus: EXIT_MACHINE_FAILED }),
      );
    if (signal?.aborted) fail();
    else signal?.addEventListener('abort', fail, { once: true, signal: done.signal });
  });
  try {
    return await Promise.race([promise, timeout(), aborted]);
  } finally {
    done.abort();
  }
}
