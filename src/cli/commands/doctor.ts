/** vduse doctor: whether exports would work here, and what to do where they would not. */
import type { Command } from 'commander';
import { type CommandContext, createCommand } from '../support/command.js';
import { type Check, examine } from '../support/doctor-checks.js';
import { ExitStatus } from '../support/errors.js';
import type { Style } from '../support/terminal.js';

const examples = `
Exit status: 0 when an export would work, 1 when not.

Examples:
  vduse doctor
  vduse doctor --json | jq -r '.checks[] | select(.status != "ok") | .fix'`;

const styles: Record<Check['status'], Style> = { ok: 'green', warn: 'yellow', fail: 'red' };

export function doctorCommand(context: CommandContext): Command {
  return createCommand('doctor', 'find out what keeps exports from working on this machine')
    .option('--json', 'print the findings as JSON')
    .addHelpText('after', examples)
    .action(async (flags: { json?: true }) => {
      const checks = await context.terminal.during('examining', examine());
      const works = checks.every((check) => check.status !== 'fail');
      if (flags.json === true) {
        context.print(`${JSON.stringify({ works, checks: checks.map(toJson) }, undefined, 2)}\n`);
      } else {
        printChecks(context, checks);
        context.print(works ? '\nExports work here.\n' : '\nExports do not work here yet.\n');
      }
      context.exitStatus = works ? ExitStatus.OK : ExitStatus.FAILURE;
    });
}

function printChecks(context: CommandContext, checks: readonly Check[]): void {
  const { print, terminal } = context;
  const width = Math.max(...checks.map((check) => check.name.length));
  // The terminal is standard error's; its colours are wrong in a file.
  const paint = (style: Style, text: string): string =>
    process.stdout.isTTY === true ? terminal.style(style, text) : text;
  for (const { name, status, message, fix } of checks) {
    print(`${paint(styles[status], status.padEnd(4))}  ${name.padEnd(width)}  ${message}\n`);
    if (fix !== undefined) {
      print(`${' '.repeat(width + 8)}${paint('bold', fix)}\n`);
    }
  }
}

function toJson({ name, status, message, fix }: Check): Record<string, string | null> {
  return { name, status, message, fix: fix ?? null };
}
