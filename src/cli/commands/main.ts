/** The program `vduse`: its commands, and what is left of a command line that is wrong. */
import { CommanderError } from 'commander';
import { packageVersion } from '../../daemon/version.js';
import { type CommandContext, createCommand, usageError } from '../support/command.js';
import { ExitStatus, exitStatusOf, sayError } from '../support/errors.js';
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

Exit status: 0 done; 1 it failed; 2 the command line is wrong; 128 + n ended by signal n before the disk was there.`;

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
  try {
    await createProgram(context).parseAsync(args, { from: 'user' });
    return context.exitStatus;
  } catch (error) {
    return explain(context, error);
  }
}

function createProgram(context: CommandContext) {
  const program = createCommand('vduse', 'Disk images as /dev/vdX, served by this process through VDUSE.')
    .version(`vduse ${packageVersion}`, '-V, --version', 'show the version')
    .helpCommand('help [command]', 'show the help of a command')
    .addHelpText('after', afterHelp);
  for (const create of [
    exportCommand,
    serveCommand,
    createImageCommand,
    convertCommand,
    listCommand,
    resizeCommand,
    removeCommand,
    doctorCommand,
    mirrorCommand,
    qmpCommand,
    topCommand,
    benchCommand,
  ]) {
    program.addCommand(create(context));
  }
  return program;
}

function explain(context: CommandContext, error: unknown): number {
  const told = error instanceof CommanderError ? usageError(error) : error;
  if (told === undefined) {
    return ExitStatus.OK;
  }
  sayError(context.terminal, told);
  return exitStatusOf(told);
}
