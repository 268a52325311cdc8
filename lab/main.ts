#!/usr/bin/env node
import { Command, InvalidArgumentError, Option } from 'commander';

import { ACCELERATORS, type Accelerator } from './accelerator.js';
import { labCache } from './cache.js';
import { EXIT_MACHINE_FAILED, EXIT_USAGE, LabError } from './errors.js';
import { KERNEL_CHANNELS, type KernelChannel, prepareKernel } from './kernel.js';
import { say } from './progress.js';
import { runInLab } from './run.js';

interface Flags {
  kernel: KernelChannel;
  smp: number;
  memory: number;
  timeout?: number;
  bootTimeout?: number;
  results?: string;
  accel?: Accelerator;
  tty?: boolean;
  fetchOnly?: boolean;
  refresh?: boolean;
  verbose?: boolean;
  quiet?: boolean;
}

function count(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < least) {
      throw new InvalidArgumentError(`A whole number from ${least} up is needed.`);
    }
    return value;
  };
}

const EXAMPLES = `
The guest sees the host's files, this checkout among them at its own path, and may write anywhere: into memory,
gone with the machine. Only a directory given with --results is written for real. Modules are left to the
command: modprobe -a vduse virtio_vdpa virtio_blk.

Examples:
  npm run lab                                       a shell in the machine; exit or Ctrl-D ends it
  npm run lab -- uname -r
  npm run lab -- --kernel unstable --smp 2 -- node build/examples/hello.js
  npm run lab -- sh -c 'modprobe -a vduse virtio_vdpa virtio_blk && ls -l /dev/vduse'
  npm run lab -- --results /tmp/out -- sh -c 'dmesg > "$VDUSE_LAB_RESULTS/dmesg.txt"'

Exit status: the command's own; or 64 wrong usage, 69 the host can't run the lab, 70 the machine failed
(boot, panic), 75 time was up, each with the reason and the end of the machine's console on stderr.

Cached in ${labCache()}`;

const program = new Command()
  .name('npm run lab --')
  .usage('[options] [--] [COMMAND ARGS...]')
  .description('Runs a command, or a shell, in a virtual machine with a Linux kernel that has VDUSE.')
  .argument('[command...]', 'what to run in the machine, from the checkout; a shell if not given')
  .passThroughOptions()
  .addOption(
    new Option('-k, --kernel <channel>', 'Debian kernel to boot').choices(KERNEL_CHANNELS).default('stable'),
  )
  .option('--smp <n>', 'processors; 1 for timing, 2 for races', count(1), 1)
  .option('--memory <mib>', 'memory in MiB', count(256), 2048)
  .option(
    '--timeout <seconds>',
    'time for the command, 0 for ever (default: 1200; no limit for a shell)',
    count(0),
  )
  .option('--boot-timeout <seconds>', 'time until the machine is up (default: 120)', count(1))
  .option('--results <dir>', 'directory that the guest may write to, at the same path')
  .option('-t, --tty', 'run the command on a terminal, as the shell is')
  .addOption(new Option('--accel <how>', 'instead of finding out whether KVM works').choices(ACCELERATORS))
  .option('--fetch-only', 'get the kernel and stop')
  .option('--refresh', 'look for a newer kernel first')
  .option('-v, --verbose', "show the kernel's console on stderr")
  .option('-q, --quiet', 'say nothing but errors')
  .addHelpText('after', EXAMPLES)
  .showHelpAfterError('(--help shows how)')
  .exitOverride();

async function main(): Promise<number> {
  program.parse();
  const flags = program.opts<Flags>();
  const isShell = program.args.length === 0;
  const interactive = isShell || flags.tty === true;

  if (flags.refresh || flags.fetchOnly) {
    const kernel = await prepareKernel(flags.kernel, flags.refresh);
    if (flags.fetchOnly) {
      say(`Linux ${kernel.version} is in ${kernel.directory}`);
      return 0;
    }
  }
  if (interactive && !(process.stdin.isTTY && process.stdout.isTTY)) {
    say('a shell needs a terminal, and stdin or stdout is none. Give a command, or run this in a terminal.');
    return EXIT_USAGE;
  }

  const abort = new AbortController();
  let stoppedBy = 0;
  for (const [signal, number] of [
    ['SIGINT', 2],
    ['SIGTERM', 15],
    ['SIGHUP', 1],
  ] as const) {
    // A second Ctrl-C changes nothing: ending the machine takes no time.
    process.on(signal, () => {
      stoppedBy ||= number;
      abort.abort();
    });
  }
  try {
    const { exitStatus } = await runInLab({
      command: isShell ? 'exec "$SHELL" -i' : program.args,
      kernel: flags.kernel,
      smp: flags.smp,
      memoryMib: flags.memory,
      timeoutMs: (flags.timeout ?? (interactive ? 0 : 1200)) * 1000,
      ...(flags.bootTimeout === undefined ? {} : { bootTimeoutMs: flags.bootTimeout * 1000 }),
      ...(flags.results === undefined ? {} : { results: flags.results }),
      ...(flags.accel === undefined ? {} : { accelerator: flags.accel }),
      verbose: flags.verbose ?? false,
      announce: !flags.quiet,
      interactive,
      keepOutput: false,
      signal: abort.signal,
      onOutput: writeOut,
    });
    return exitStatus;
  } catch (error) {
    if (stoppedBy !== 0) return 128 + stoppedBy;
    throw error;
  }
}

/** A reader of our stdout that is slower than the guest slows the guest down, instead of filling memory. */
function writeOut(chunk: Buffer): Promise<void> | undefined {
  if (process.stdout.write(chunk)) return undefined;
  return new Promise((resolve) => process.stdout.once('drain', () => resolve()));
}

/** Tells what went wrong, the machine's own words first, and gives the exit status for it. */
function explain(error: unknown): number {
  if (!(error instanceof Error)) throw error;
  // Commander has printed its own message, or the help that was asked for.
  if ('code' in error && String(error.code).startsWith('commander.')) {
    return (error as { exitCode?: number }).exitCode === 0 ? 0 : EXIT_USAGE;
  }
  if (!(error instanceof LabError)) {
    process.stderr.write(`${error.stack}\n`);
    return EXIT_MACHINE_FAILED;
  }
  if (error.consoleTail !== '') {
    const lines = error.consoleTail.split('\n').map((line) => `  | ${line}`);
    process.stderr.write(`lab: the end of the machine's console:\n${lines.join('\n')}\n`);
  }
  say(`error: ${error.message}`);
  return error.exitStatus;
}

process.exitCode = await main().catch(explain);
