/** vduse qmp: a shell for the control protocol of a storage daemon or an export, and single commands. */
import type { Command } from 'commander';
import { VduseError } from '../../base/errors.js';
import { formatJson, isJsonObject } from '../../qmp/json-value.js';
import { type CommandContext, createCommand } from '../support/command.js';
import { connectToMonitor } from '../support/connect.js';
import { ExitStatus, UsageError } from '../support/errors.js';
import type { QmpClient } from '../support/qmp-client.js';
import { QmpHistory } from '../support/qmp-history.js';
import { QmpShell } from '../support/qmp-shell.js';
import { CommandWords, hintForCommand, parseCommand, type WrittenCommand } from '../support/qmp-words.js';

const examples = `
SOCKET is the path of a monitor's socket, or the name of a device that vduse exports. Without a command it is a shell,
with completion by the tabulator key; events are shown as they come. A command's arguments are KEY=VALUE or JSON;
a whole request as JSON does as well.
Commands may also come from a pipe, a line each: the exit status is 1 when one of them was refused.

Examples:
  vduse qmp /run/vduse/qmp.sock
  vduse qmp /run/vduse/qmp.sock query-block-exports
  vduse qmp /run/vduse/qmp.sock block_resize node-name=disk0 size=20G
  vduse qmp /run/vduse/qmp.sock < commands
  vduse qmp /run/vduse/qmp.sock blockdev-add '{"driver": "null-co", "node-name": "n"}'`;

export function qmpCommand(context: CommandContext): Command {
  return createCommand('qmp', 'speak QMP with a storage daemon: a shell, or one command')
    .argument('<socket>', "the monitor's socket, or the name of a device")
    .argument('[command...]', 'a command and its arguments')
    .addHelpText('after', examples)
    .action(async (socket: string, words: string[]) => {
      if (words.length === 0) {
        await runShell(context, socket);
        return;
      }
      // Before it connects: what is wrong with the words is wrong with any server.
      parse(words);
      const client = await connectToMonitor(socket);
      try {
        const command = parse(words, words.length > 1 ? await schemaOf(client) : undefined);
        const answer = await client
          .execute(command.name, command.arguments)
          .catch((error: unknown) => explainRefusal(client, command.name, error));
        context.print(`${formatJson(answer, { pretty: true })}\n`);
      } finally {
        client.close();
      }
    });
}

function parse(words: readonly string[], schema?: CommandWords): WrittenCommand {
  try {
    return parseCommand(words, schema);
  } catch (error) {
    throw error instanceof VduseError ? new UsageError(error.message, error.hint) : error;
  }
}

/** Adds what to do where the server has no such command. */
async function explainRefusal(client: QmpClient, name: string, error: unknown): Promise<never> {
  const known = await client.execute('query-commands').catch(() => undefined);
  const names = Array.isArray(known) ? known.filter(isJsonObject).map((one) => String(one['name'])) : [];
  const hint = names.length === 0 ? undefined : hintForCommand(name, names);
  throw hint !== undefined && error instanceof VduseError
    ? new VduseError(error.code, error.message, { hint, cause: error })
    : error;
}

async function schemaOf(client: QmpClient): Promise<CommandWords> {
  return new CommandWords(await client.execute('query-qmp-schema').catch(() => []));
}

async function runShell(context: CommandContext, socket: string): Promise<void> {
  let shell: QmpShell | undefined;
  let hasEnded = false;
  const client = await connectToMonitor(socket, {
    onEvent: (event) => shell?.show(event),
    onEnd: () => {
      hasEnded = true;
      shell?.end();
    },
  });
  try {
    const words = await schemaOf(client);
    const { stdin: input, stdout: output } = process;
    const isTerminal = input.isTTY === true;
    const history = isTerminal ? new QmpHistory() : undefined;
    shell = new QmpShell({ client, words, input, output, isTerminal, history, terminal: context.terminal });
    await shell.run();
    if (shell.hasFailed && !isTerminal) {
      context.exitStatus = ExitStatus.FAILURE;
    }
  } finally {
    client.close();
  }
  if (hasEnded && !shell.hasQuit) {
    throw new VduseError('ABORTED', `${socket}: the monitor has ended the connection`);
  }
}
