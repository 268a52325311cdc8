/** What the benchmarks have alike as commands: options, the signals that end them, exit statuses. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { say } from '../../lab/progress.js';

/** The command line is wrong: exit status 64. */
export class UsageError extends Error {}

/** The options of the command line, which says what is wrong with it and ends the process otherwise. */
export function readOptions<const T extends NonNullable<ParseArgsConfig['options']>>(options: T) {
  try {
    return parseArgs({ options }).values;
  } catch (error) {
    say(`${(error as Error).message}; --help lists the options`, 'bench');
    process.exit(64);
  }
}

/** A number above 0 that an option gives. */
export function readNumber<Name extends string>(
  options: { readonly [name in Name]?: string },
  name: Name,
  preset: number,
): number {
  const value = options[name] === undefined ? preset : Number(options[name]);
  if (!(value > 0)) throw new UsageError(`--${name} takes a number above 0; got: ${options[name]}`);
  return value;
}

/** The same for what comes in whole numbers alone. */
export function readCount<Name extends string>(
  options: { readonly [name in Name]?: string },
  name: Name,
  preset: number,
): number {
  return Math.ceil(readNumber(options, name, preset));
}

/** A regular expression that an option gives. */
export function readPattern<Name extends string>(
  options: { readonly [name in Name]: string },
  name: Name,
): RegExp {
  try {
    return new RegExp(options[name]);
  } catch {
    throw new UsageError(`--${name} takes a regular expression; got: ${options[name]}`);
  }
}

/** Prints the help, or measures until it is done or a signal ends it, and says what went wrong. Returns the exit status. */
export async function runBenchmark(
  options: { readonly help?: boolean },
  help: string,
  measure: (signal: AbortSignal) => Promise<void>,
): Promise<number> {
  if (options.help === true) {
    process.stdout.write(help);
    return 0;
  }
  const interrupted = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    // Stores, servers and files are put away on the way out.
    process.on(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
  }
  try {
    await measure(interrupted.signal);
    return 0;
  } catch (error) {
    const { message } = error as Error;
    say(interrupted.signal.aborted ? (interrupted.signal.reason as Error).message : message, 'bench');
    if (error instanceof UsageError) return 64;
    return interrupted.signal.aborted ? 130 : 1;
  }
}
