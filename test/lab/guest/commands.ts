/** The two commands as their users start them, from the compiled checkout. */
import type { CheckContext } from './checks.js';
import { type Finished, type RunningProgram, start } from './shell.js';

const compiled = new URL('../../../src/cli/', import.meta.url).pathname;

function command(name: string, args: readonly string[]): Promise<RunningProgram> {
  return start(process.execPath, ['--enable-source-maps', `${compiled}${name}.js`, ...args]);
}

/** Starts vduse-storage-daemon for the time of the check. */
export async function startDaemon(context: CheckContext, args: readonly string[]): Promise<RunningProgram> {
  const daemon = await command('vduse-storage-daemon', args);
  context.after(() => daemon.end('SIGKILL'));
  return daemon;
}

/** Starts `vduse export` for the time of the check, and waits for its disk. */
export async function startExport(
  context: CheckContext,
  args: readonly string[],
): Promise<{ program: RunningProgram; path: string }> {
  const program = await command('vduse', ['export', ...args]);
  context.after(() => program.end('SIGKILL'));
  const [path] = await program.says(/\/dev\/(vd[a-z]+|vhost-vdpa-\d+)/, 60_000);
  return { program, path };
}

/** Runs vduse to its end. */
export async function vduse(...args: string[]): Promise<Finished> {
  return (await command('vduse', args)).finished;
}
