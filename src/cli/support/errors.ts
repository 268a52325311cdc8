/** How errors look, and what exit status they give. */
import { constants } from 'node:os';
import { errorMessage, VduseError } from '../../base/errors.js';
import type { Terminal } from './terminal.js';

export const ExitStatus = { OK: 0, FAILURE: 1, USAGE: 2 } as const;

/** A command line that is wrong, whatever the machine is like. */
export class UsageError extends VduseError {
  /** Without a hint, the command's help is where it says what to do. */
  constructor(message: string, hint?: string) {
    super('INVALID_ARGUMENT', message, { hint });
    this.name = 'UsageError';
  }
}

/** The end that somebody asked for by a signal, before the command was done. */
export class InterruptedError extends VduseError {
  readonly signal: NodeJS.Signals;

  constructor(signal: NodeJS.Signals, message: string) {
    super('ABORTED', message);
    this.name = 'InterruptedError';
    this.signal = signal;
  }
}

export function exitStatusOf(error: unknown): number {
  if (error instanceof InterruptedError) {
    return 128 + constants.signals[error.signal];
  }
  return error instanceof UsageError ? ExitStatus.USAGE : ExitStatus.FAILURE;
}

export interface ErrorReport {
  readonly code: string;
  readonly message: string;
  readonly hint: string | undefined;
}

/** The parts of anything thrown. A mistake of ours shows its stack: it goes into a bug report. */
export function describeError(error: unknown): ErrorReport {
  if (error instanceof VduseError) {
    return { code: error.code, message: error.message, hint: error.hint };
  }
  if (error instanceof Error && 'syscall' in error) {
    return { code: 'SYSTEM_CALL', message: error.message, hint: undefined };
  }
  const text = error instanceof Error ? (error.stack ?? error.message) : errorMessage(error);
  return { code: 'INTERNAL', message: `unexpected error: ${text}`, hint: 'This is a mistake in vduse.' };
}

export function sayError(terminal: Terminal, error: unknown): void {
  const { message, hint } = describeError(error);
  terminal.say(`${terminal.style('red', 'vduse:')} ${message}`);
  if (hint !== undefined) {
    terminal.say(`  ${terminal.style('bold', 'hint:')} ${hint}`);
  }
}
