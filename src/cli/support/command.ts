/** What all commands share: where they write, how they say their exit status, how they check arguments. */
import { Command, type CommanderError, Option } from 'commander';
import { VduseError } from '../../base/errors.js';
import { checkDeviceName } from '../../transport/vduse/device-name.js';
import { controlNameBytesMax } from './control-socket.js';
import { UsageError } from './errors.js';
import type { Terminal } from './terminal.js';

export interface CommandContext {
  /** Standard error. */
  readonly terminal: Terminal;
  /** Writes to standard output. */
  readonly print: (text: string) => void;
  exitStatus: number;
}

export function createCommand(name: string, summary: string): Command {
  return (
    new Command(name)
      .description(summary)
      .exitOverride()
      // What commander has to say about a wrong command line is said as all errors are: see usageError.
      .configureOutput({ writeErr: () => undefined })
      .helpOption('-h, --help', 'show this help')
  );
}

/** An error of commander's as one of ours. Undefined: help or the version was printed. */
export function usageError(error: CommanderError): UsageError | undefined {
  if (error.exitCode === 0) {
    return undefined;
  }
  if (error.code === 'commander.help') {
    return new UsageError('no command was given');
  }
  const [message, suggestion] = error.message.replace(/^error: /, '').split('\n');
  const near = /^\(Did you mean (.*)\?\)$/.exec(suggestion ?? '')?.[1];
  return new UsageError(message, near === undefined ? undefined : `Did you mean ${near}?`);
}

/** An option whose argument goes through `parse`; what that refuses is wrong usage. */
export function checkedOption<T>(flags: string, description: string, parse: (text: string) => T): Option {
  const option = new Option(flags, description);
  return option.argParser((text: string) => checked(option.long ?? flags, () => parse(text)));
}

/** Runs a check of an argument; the error names the argument, once, and counts as wrong usage. */
export function checked<T>(what: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    if (error instanceof VduseError) {
      const quoted = `'${what}'`;
      const place = error.message.includes(quoted) ? '' : `${what.endsWith(':') ? quoted : what}: `;
      throw new UsageError(`${place}${error.message}`, error.hint);
    }
    throw error;
  }
}

/** Seconds, with a fraction if wanted. */
export function secondsIn(range: { min: number; max: number }): (text: string) => number {
  return (text) => {
    const seconds = Number(text.replace(/s$/, ''));
    if (!/^\d+(\.\d+)?s?$/.test(text) || seconds < range.min || seconds > range.max) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `'${text}' is no number of seconds from ${range.min} to ${range.max}`,
      );
    }
    return seconds;
  };
}

export function integerIn(range: { min: number; max: number }): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < range.min || value > range.max) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `'${text}' is no whole number from ${range.min} to ${range.max}`,
      );
    }
    return value;
  };
}

export function powerOfTwoIn(range: { min: number; max: number }): (text: string) => number {
  return (text) => {
    const value = integerIn(range)(text);
    if ((value & (value - 1)) !== 0) {
      const below = 2 ** Math.floor(Math.log2(value));
      throw new VduseError('INVALID_ARGUMENT', `${value} is no power of two`, {
        hint: `The nearest ones are ${below} and ${2 * below}.`,
      });
    }
    return value;
  };
}

/** A device name that VDUSE takes and that fits into the control socket's path. */
export function parseDeviceName(name: string): string {
  checkDeviceName(name);
  const bytesMax = controlNameBytesMax();
  if (Buffer.byteLength(name) > bytesMax) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `device name '${name}' is longer than ${bytesMax} bytes, for which the path of a control socket has room`,
    );
  }
  return name;
}
