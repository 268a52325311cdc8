/** The shell for QMP as somebody types into it, with a real daemon behind it; on a real terminal it is in test/programs. */
import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { stripVTControlCharacters } from 'node:util';
import { QmpClient } from '../../src/cli/support/qmp-client.js';
import { QmpHistory } from '../../src/cli/support/qmp-history.js';
import { QmpShell } from '../../src/cli/support/qmp-shell.js';
import { CommandWords } from '../../src/cli/support/qmp-words.js';
import { Terminal } from '../../src/cli/support/terminal.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { Fakes } from '../daemon/fakes.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const directory = makeTempDir();
let sockets = 0;

/** A shell whose screen is a text. */
class Typist {
  readonly #input = new PassThrough();
  readonly shell: QmpShell;
  readonly ended: Promise<void>;
  screen = '';
  errors = '';

  constructor(
    client: QmpClient,
    words: CommandWords,
    options: { history?: QmpHistory; isTerminal?: boolean } = {},
  ) {
    const output = new PassThrough();
    output.on('data', (chunk: Buffer) => {
      this.screen += stripVTControlCharacters(chunk.toString());
    });
    const stream = { write: (text: string) => (this.errors += text) } as unknown as NodeJS.WritableStream;
    this.shell = new QmpShell({
      client,
      words,
      input: this.#input,
      output,
      isTerminal: options.isTerminal ?? true,
      history: options.history,
      terminal: new Terminal(stream),
    });
    this.ended = this.shell.run();
  }

  /** Types, and waits until that has been answered on the screen. */
  async type(keys: string, answer: RegExp): Promise<void> {
    const from = this.screen.length;
    this.#input.write(keys);
    await until(`${answer}`, () => answer.test(this.screen.slice(from)));
  }

  hangUp(text = ''): Promise<void> {
    this.#input.end(text);
    return this.ended;
  }
}

describe('the shell for QMP', () => {
  let daemon: StorageDaemon;
  let client: QmpClient;
  let words: CommandWords;
  let typist: Typist | undefined;

  beforeEach(async () => {
    daemon = new StorageDaemon(new Fakes().factories);
    const path = join(directory, `${sockets++}.sock`);
    await daemon.startMonitor(path);
    client = (await QmpClient.connect(path, { onEvent: (event) => typist?.shell.show(event) }))!;
    words = new CommandWords(await client.execute('query-qmp-schema'));
  });
  afterEach(async () => {
    client.close();
    await daemon.close();
  });

  it('completes commands, arguments and values by the tabulator key', async () => {
    typist = new Typist(client, words);
    await typist.type('query-block-e\t', /query-block-exports $/);
    await typist.type('\n', /\[\]\n/);
    // Several fit: what they have in common first, then all of them.
    await typist.type('query-bl\t', /query-block$/);
    await typist.type('\t', /query-block-exports\s+query-block-jobs/);
    await typist.type('\x15block-export-del m\t', /mode=$/);
    await typist.type('\t', /mode=safe\s+mode=hard|mode=hard\s+mode=safe/);
    await typist.type('h\t', /hard $/);
    await typist.type('\x15blockdev-add cache.d\t', /cache\.direct=$/);
    await typist.type('t\t', /true $/);
    await typist.hangUp();
  });

  it('remembers lines, in this run and in the next one, and no secrets', async () => {
    const path = join(directory, 'state/vduse/qmp-history');
    typist = new Typist(client, words, { history: new QmpHistory(path) });
    await typist.type('query-version\n', /"qemu"/);
    await typist.type('object-add qom-type=secret id=s data=x\n', /\(qmp\)/);
    await typist.type('\x1b[A\x1b[A', /query-version$/);
    await typist.type('\x15query-jobs\n', /\[\]\n/);
    await typist.hangUp();
    assert.equal(readFileSync(path, 'utf8'), 'query-version\nquery-jobs\n');
    assert.equal(statSync(path).mode & 0o777, 0o600);
    typist = new Typist(client, words, { history: new QmpHistory(path) });
    await typist.type('\x1b[A', /query-jobs$/);
    await typist.type('\x1b[A', /query-version$/);
    await typist.hangUp('\x15');
    assert.equal(readFileSync(path, 'utf8'), 'query-version\nquery-jobs\n', 'nothing was told');
  });

  it('shows events above what is being typed', async () => {
    typist = new Typist(client, words);
    await typist.type('query-ver', /query-ver$/);
    typist.shell.show({ event: 'SOMETHING' });
    await until('the line again', () => /"SOMETHING"\n\}\n\(qmp\) query-ver/.test(typist!.screen));
    await typist.type('sion\n', /"qemu"/);
    await typist.hangUp();
  });

  it('says what is wrong, and goes on', async () => {
    typist = new Typist(client, words);
    await typist.type('nothing\n', /\(qmp\) $/);
    await until('the error', () => /error: The command nothing has not been found/.test(typist!.errors));
    await typist.type('query-jobs what\n', /\(qmp\) $/);
    await until('the error', () => /error: 'what' is no KEY=VALUE\n {2}hint: /.test(typist!.errors));
    await typist.type('query-job\n', /\(qmp\) $/);
    await until('the hint', () => /not been found\n {2}hint: Did you mean query-jobs\?/.test(typist!.errors));
    await typist.type('help\n', /query-commands lists the commands, exit or Ctrl-D leaves/);
    await typist.type('exit\n', /exit/);
    await typist.ended;
    assert.ok(typist.shell.hasFailed && !typist.shell.hasQuit);
  });

  it('executes the lines of a pipe to the last one, without prompts', async () => {
    typist = new Typist(client, words, { isTerminal: false });
    await typist.hangUp('query-jobs\n\nquery-block-exports\nquery-jobs');
    assert.equal(typist.screen, '[]\n[]\n[]\n');
    assert.deepEqual([typist.errors, typist.shell.hasFailed], ['', false]);
  });

  it('ends with the monitor', async () => {
    typist = new Typist(client, words);
    await typist.type('quit\n', /\{\}/);
    typist.shell.end();
    await typist.ended;
    assert.ok(typist.shell.hasQuit);
  });
});

describe('the history', () => {
  it('is no matter of life and death', () => {
    const path = join(directory, 'file');
    writeFileSync(path, '');
    const history = new QmpHistory(join(path, 'below/a/file'));
    history.add(['query-jobs']);
    assert.deepEqual(history.read(), []);
  });

  it('keeps the last thousand lines, the newest first', () => {
    const history = new QmpHistory(join(directory, 'long'));
    history.add(Array.from({ length: 1200 }, (_, n) => `line ${n}`));
    history.add(['one more']);
    assert.deepEqual(
      [history.read().length, history.read()[0], history.read().at(-1)],
      [1000, 'one more', 'line 201'],
    );
  });
});
