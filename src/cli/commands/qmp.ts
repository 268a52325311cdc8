/** vduse qmp: a shell for the control protocol of a storage daemon or an export, and single commands. */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { errorMessage, VduseError } from '../../base/errors.js';
import { formatJson, type JsonValue } from '../../qmp/json-value.js';
import { type CommandContext, createCommand } from '../support/command.js';
import { connectToMonitor } from '../support/connect.js';
import { UsageError } from '../support/errors.js';
import type { QmpClient } from '../support/qmp-client.js';
import { CommandWords, parseCommand, splitWords, type WrittenCommand } from '../support/qmp-words.js';

const examples = `
SOCKET is the path of a monitor's socket, or the name of a device that vduse exports. Without a command it is a shell,
with completion by the tabulator key; events are shown as they come. A command's arguments are KEY=VALUE or JSON.

Examples:
  vduse qmp /run/vduse/qmp.sock
  vduse qmp /run/vduse/qmp.sock query-block-exports
  vduse qmp /run/vduse/qmp.sock block_resize node-name=disk0 size=21474836480
  vduse qmp /run/vduse/qmp.sock blockdev-add '{"driver": "null-co", "node-name": "n"}'`;

const HISTORY_LINES_MAX = 1000;

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
      const command = parse(words);
      const client = await connectToMonitor(socket);
      try {
        print(context, await client.execute(command.name, command.arguments));
      } finally {
        client.close();
      }
    });
}

function parse(words: readonly string[]): WrittenCommand {
  try {
    return parseCommand(words);
  } catch (error) {
    throw error instanceof VduseError ? new UsageError(error.message, error.hint) : error;
  }
}

function print(context: CommandContext, value: JsonValue): void {
  context.print(`${formatJson(value, { pretty: true })}\n`);
}

async function runShell(context: CommandContext, socket: string): Promise<void> {
  const client = await connectToMonitor(socket, {
    onEvent: (event) => print(context, event),
    onEnd: () => shell.close(),
  });
  const words = new CommandWords(await client.execute('query-qmp-schema').catch(() => []));
  const history = historyPath();
  const shell = createInterface({
    input: process.stdin,
    output: process.stdout,
    terminal: process.stdin.isTTY === true,
    prompt: process.stdin.isTTY === true ? '(qmp) ' : '',
    completer: (line: string) => words.complete(line),
    history: readHistory(history),
    historySize: HISTORY_LINES_MAX,
    removeHistoryDuplicates: true,
  });
  const told: string[] = [];
  shell.prompt();
  for await (const line of shell) {
    if (line.trim() === 'exit') {
      break;
    }
    if (line.trim() !== '') {
      told.push(line);
      await runLine(context, client, line);
    }
    shell.prompt();
  }
  shell.close();
  client.close();
  writeHistory(history, told);
}

async function runLine(context: CommandContext, client: QmpClient, line: string): Promise<void> {
  try {
    const command = parseCommand(splitWords(line));
    print(context, await client.execute(command.name, command.arguments));
  } catch (error) {
    context.terminal.say(`${context.terminal.style('red', 'error:')} ${errorMessage(error)}`);
  }
}

function historyPath(): string {
  const state = process.env['XDG_STATE_HOME'] ?? '';
  return join(state === '' ? join(homedir(), '.local/state') : state, 'vduse/qmp-history');
}

/** The newest line first, as readline wants it. */
function readHistory(path: string): string[] {
  try {
    return readFileSync(path, 'utf8').split('\n').filter(Boolean).reverse();
  } catch {
    return [];
  }
}

/** What may be a secret is not kept. */
function writeHistory(path: string, lines: readonly string[]): void {
  const kept = lines.filter((line) => !/secret|password|data/.test(line));
  if (kept.length === 0) {
    return;
  }
  const all = [...readHistory(path).reverse(), ...kept].slice(-HISTORY_LINES_MAX);
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
    writeFileSync(path, `${all.join('\n')}\n`, { mode: 0o600 });
    chmodSync(path, 0o600);
  } catch {
    // A home that can't be written to takes nothing from the commands.
  }
}
