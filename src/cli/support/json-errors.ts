/** Errors of commands that print events. */
import type { CommandContext } from './command.js';
import { describeError, exitStatusOf, UsageError } from './errors.js';
import { printEvent } from './progress.js';

/** Runs a command whose errors are events with --json; wrong usage is told to people all the same. */
export async function reportErrors(
  context: CommandContext,
  json: boolean,
  command: () => Promise<void>,
): Promise<void> {
  try {
    await command();
  } catch (error) {
    if (!json || error instanceof UsageError) {
      throw error;
    }
    printEvent(context, 'error', { ...describeError(error) });
    context.exitStatus = exitStatusOf(error);
  }
}
