import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VduseError } from '../../src/base/errors.js';
import { sayError, UsageError } from '../../src/cli/support/errors.js';
import { formatTable } from '../../src/cli/support/table.js';
import { Terminal } from '../../src/cli/support/terminal.js';

function makeTerminal(isTTY: boolean, environment: NodeJS.ProcessEnv = {}, size = { columns: 80, rows: 24 }) {
  const stream = Object.assign(new PassThrough(), { isTTY, ...size });
  let text = '';
  stream.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  return { terminal: new Terminal(stream, environment), shown: () => text };
}

describe('without a terminal', () => {
  it('nothing is drawn over and nothing is coloured', () => {
    const { terminal, shown } = makeTerminal(false);
    terminal.live('changing');
    terminal.say(terminal.style('red', 'stays'));
    terminal.live('');
    assert.equal(shown(), 'stays\n');
  });

  it('what takes long is said in lines', async () => {
    const { terminal, shown } = makeTerminal(false);
    await terminal.during('waiting', sleep(2700));
    assert.match(shown(), /^waiting … 2 s\n$/);
  });
});

describe('on a terminal', () => {
  it('the live line is below what is said', () => {
    const { terminal, shown } = makeTerminal(true);
    terminal.live('first');
    terminal.say('stays');
    const afterStay = shown().slice(shown().indexOf('stays'));
    assert.match(afterStay, /^stays\n(.*)first/s);
    terminal.live('');
    terminal.say('last');
    assert.ok(shown().endsWith('last\n'));
  });

  it('one that does not know its size shows the live line too', () => {
    const { terminal, shown } = makeTerminal(true, {}, { columns: 0, rows: 0 });
    terminal.live('first');
    assert.match(shown(), /first/);
  });

  it('work that is quick shows nothing', async () => {
    const { terminal, shown } = makeTerminal(true);
    assert.equal(await terminal.during('waiting', sleep(600, 'done')), 'done');
    assert.ok(!shown().includes('waiting'));
  });

  it('work that fails takes its line with it', async () => {
    const { terminal } = makeTerminal(true);
    await assert.rejects(terminal.during('waiting', Promise.reject(new Error('no'))), /no/);
  });

  it('NO_COLOR takes the colours away when it is not empty, and a dumb terminal has none', () => {
    const red = (environment: NodeJS.ProcessEnv) =>
      makeTerminal(true, environment).terminal.style('red', 'x');
    assert.equal(red({}), '\x1b[31mx\x1b[0m');
    assert.equal(red({ NO_COLOR: '' }), '\x1b[31mx\x1b[0m');
    assert.equal(red({ NO_COLOR: '1' }), 'x');
    assert.equal(red({ TERM: 'dumb' }), 'x');
  });
});

describe('errors', () => {
  const said = (error: unknown): string => {
    const { terminal, shown } = makeTerminal(false);
    sayError(terminal, error);
    return shown();
  };

  it('with a hint', () => {
    const error = new VduseError('NOT_FOUND', 'it is not there', { hint: 'look elsewhere' });
    assert.equal(said(error), 'vduse: it is not there\n  hint: look elsewhere\n');
  });

  it('without a hint', () => {
    assert.equal(said(new VduseError('NOT_FOUND', 'it is not there')), 'vduse: it is not there\n');
  });

  it('of the command line with the hint that its command gave', () => {
    assert.equal(
      said(new UsageError('what?', 'See vduse list --help.')),
      'vduse: what?\n  hint: See vduse list --help.\n',
    );
  });

  it('of ours show where they come from', () => {
    assert.match(
      said(new TypeError('x is not a function')),
      /unexpected error: TypeError.*\n.* at .*terminal\.test/,
    );
  });
});

it('a table has columns as wide as what is in them', () => {
  const table = formatTable(
    ['NAME', 'SIZE'],
    [
      ['a-long-name', '1'],
      ['b', '22'],
    ],
  );
  assert.equal(table, 'NAME         SIZE\na-long-name  1\nb            22');
});
