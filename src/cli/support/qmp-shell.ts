/** A shell for QMP: lines in, answers and events out. */
import { clearLine, createInterface, cursorTo, type Interface } from 'node:readline';
import { formatJson, type JsonValue } from '../../qmp/json-value.js';
import { describeError } from './errors.js';
import type { QmpClient } from './qmp-client.js';
import { historyLinesMax, type QmpHistory } from './qmp-history.js';
import { type CommandWords, hintForCommand, parseLine } from './qmp-words.js';
import type { Terminal } from './terminal.js';

export interface QmpShellOptions {
  readonly client: Pick<QmpClient, 'execute'>;
  readonly words: CommandWords;
  readonly input: NodeJS.ReadableStream;
  readonly output: NodeJS.WritableStream;
  /** Somebody types: with a prompt, completion and history. */
  readonly isTerminal: boolean;
  readonly history: QmpHistory | undefined;
  /** Where errors go. */
  readonly terminal: Terminal;
}

const help = `Write a command and its arguments as KEY=VALUE or JSON, or a whole request as JSON. The tabulator key completes them,
query-commands lists the commands, exit or Ctrl-D leaves the shell.`;

export class QmpShell {
  readonly #options: QmpShellOptions;
  readonly #interface: Interface;
  #isClosed = false;
  /** A command is under way: no prompt is there to be drawn again. */
  #isBusy = false;
  #hasQuit = false;
  #hasFailed = false;

  constructor(options: QmpShellOptions) {
    const { input, output, isTerminal, words, history } = options;
    this.#options = options;
    this.#interface = createInterface({
      input,
      output,
      terminal: isTerminal,
      prompt: isTerminal ? '(qmp) ' : '',
      completer: (line: string) => words.complete(line),
      history: history?.read() ?? [],
      historySize: historyLinesMax,
      removeHistoryDuplicates: true,
    });
    this.#interface.once('close', () => {
      this.#isClosed = true;
    });
  }

  /** The server was told to end, so the end of its connection is no surprise. */
  get hasQuit(): boolean {
    return this.#hasQuit;
  }

  /** A command was refused, or was none. */
  get hasFailed(): boolean {
    return this.#hasFailed;
  }

  /** Until the end of the input, `exit`, or `end`. */
  async run(): Promise<void> {
    const { output, isTerminal } = this.#options;
    const told: string[] = [];
    this.#prompt();
    for await (const line of this.#interface) {
      const text = line.trim();
      if (text === 'exit') {
        break;
      }
      if (isTerminal && (text === 'help' || text === '?')) {
        output.write(`${help}\n`);
      } else if (text !== '') {
        told.push(text);
        await this.#execute(text);
      }
      this.#prompt();
    }
    this.end();
    this.#options.history?.add(told);
  }

  /** Above the prompt and what is typed behind it. */
  show(value: JsonValue): void {
    const { output, isTerminal } = this.#options;
    const redraws = isTerminal && !this.#isBusy && !this.#isClosed;
    if (redraws) {
      cursorTo(output, 0);
      clearLine(output, 0);
    }
    output.write(`${formatJson(value, { pretty: true })}\n`);
    if (redraws) {
      this.#interface.prompt(true);
    }
  }

  end(): void {
    if (!this.#isClosed) {
      this.#interface.close();
    }
  }

  /** Lines of a file may all have been read, and the input closed, before they are executed. */
  #prompt(): void {
    if (!this.#isClosed) {
      this.#interface.prompt();
    }
  }

  async #execute(text: string): Promise<void> {
    const { client, words, terminal } = this.#options;
    this.#isBusy = true;
    let name: string | undefined;
    try {
      const command = parseLine(text, words);
      name = command.name;
      this.#hasQuit ||= command.name === 'quit';
      this.show(await client.execute(command.name, command.arguments));
    } catch (error) {
      this.#hasFailed = true;
      const { message, hint } = describeError(error);
      terminal.say(`${terminal.style('red', 'error:')} ${message}`);
      const advice = hint ?? (name === undefined ? undefined : hintForCommand(name, words.commands));
      if (advice !== undefined) {
        terminal.say(`  ${terminal.style('bold', 'hint:')} ${advice}`);
      }
    } finally {
      this.#isBusy = false;
    }
  }
}
