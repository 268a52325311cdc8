/** The program `vduse`: its commands, and what is left of a command line that is wrong. */
import { type Command, CommanderError } from 'commander';
import { packageVersion } from '../../daemon/version.js';
import { nearest } from '../../qmp/nearest.js';
import { type CommandContext, createCommand, usageError } from '../support/command.js';
import { ExitStatus, exitStatusOf, sayError, UsageError } from '../support/errors.js';
import { Terminal } from '../support/terminal.js';
import { benchCommand } from './bench.js';
import { convertCommand } from './convert.js';
import { createImageCommand } from './create.js';
import { doctorCommand } from './doctor.js';
import { exportCommand } from './export.js';
import { listCommand } from './list.js';
import { mirrorCommand } from './mirror.js';
import { qmpCommand } from './qmp.js';
import { removeCommand } from './remove.js';
import { resizeCommand } from './resize.js';
import { serveCommand } from './serve.js';
import { topCommand } from './top.js';

const afterHelp = `
Examples:
  vduse doctor                    what is missing on this machine
  vduse create disk.img 10G
  vduse export disk.img           prints /dev/vdX; Ctrl-C takes it away
  vduse list
  vduse serve disk.img --nbd /tmp/disk.sock    over NBD, without the kernel and without root
  vduse convert disk.img nbd://storage/disk

'vduse COMMAND --help' has the options of a command, and examples.

Exit status: 0 done; 1 it failed; 2 the command line is wrong; 128 + n ended by signal n before it was done.`;

const commandGroups: readonly [string, readonly ((context: CommandContext) => Command)[]][] = [
  [
    'Disks of this machine:',
    [exportCommand, serveCommand, listCommand, resizeCommand, removeCommand, doctorCommand],
  ],
  ['Images and storage:', [createImageCommand, convertCommand, benchCommand]],
  ['Daemons that run:', [mirrorCommand, topCommand, qmpCommand]],
];

/** Returns the exit status. */
export async function main(args: readonly string[]): Promise<number> {
  // A reader that went away is no reason to leave a disk unserved.
  process.stdout.on('error', () => undefined);
  process.stderr.on('error', () => undefined);
  const context: CommandContext = {
    terminal: new Terminal(process.stderr),
    print: (text) => void process.stdout.write(text),
    exitStatus: ExitStatus.OK,
  };
  const program = createProgram(context);
  try {
    checkCommandName(program, args);
    await program.parseAsync(args, { from: 'user' });
    return context.exitStatus;
  } catch (error) {
    return explain(context, error, commandOf(program, args[0]));
  }
}

function createProgram(context: CommandContext): Command {
  const program = createCommand('vduse', 'Disk images as /dev/vdX, served by this process through VDUSE.')
    .version(`vduse ${packageVersion}`, '-V, --version', 'show the version')
    .commandsGroup('Help:')
    .helpCommand('help [command]', 'show the help of a command')
    .addHelpText('after', afterHelp);
  for (const [heading, commands] of commandGroups) {
    program.commandsGroup(heading);
    for (const create of commands) {
      program.addCommand(create(context));
    }
  }
  return program;
}

function commandOf(program: Command, name: string | undefined): Command | undefined {
  return program.commands.find((command) => command.name() === name);
}

/** The parser shows the program's help for `help x` and `x --help` of a command x that there is not. */
function checkCommandName(program: Command, [first, second]: readonly string[]): void {
  const name = first === 'help' ? second : first;
  if (
    name === undefined ||
    name === 'help' ||
    name.startsWith('-') ||
    commandOf(program, name) !== undefined
  ) {
    return;
  }
  const names = program.commands.map((command) => command.name());
  const near = nearest(name, names);
  throw new UsageError(
    `unknown command '${name}'`,
    near === undefined ? `There are: ${names.join(', ')}.` : `Did you mean ${near}?`,
  );
}

function explain(context: CommandContext, error: unknown, command: Command | undefined): number {
  const told = error instanceof CommanderError ? usageError(error) : error;
  if (told === undefined) {
    return ExitStatus.OK;
  }
  sayError(context.terminal, told instanceof UsageError ? withHint(told, command) : told);
  return exitStatusOf(told);
}

/** Where there is nothing better to do, help is to be read. */
function withHint(error: UsageError, command: Command | undefined): UsageError {
  const help = command === undefined ? 'vduse --help' : `vduse ${command.name()} --help`;
  return error.hint === undefined ? new UsageError(error.message, `See ${help}.`) : error;
}
