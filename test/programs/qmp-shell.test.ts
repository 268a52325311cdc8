/** vduse qmp with a storage daemon: single commands, a pipe, and a real terminal, which script(1) makes. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { stripVTControlCharacters } from 'node:util';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const program = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);
const env = { ...process.env, XDG_STATE_HOME: inDirectory('state'), TERM: 'xterm' };

function qmp(args: string[], input = '') {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [program('vduse'), 'qmp', './qmp', ...args],
    {
      cwd: directory,
      encoding: 'utf8',
      env,
      input,
    },
  );
  return { status, stdout, stderr };
}

describe('vduse qmp', () => {
  let daemon: ChildProcess;

  before(async () => {
    const args = ['--blockdev=null-co,node-name=n', '--chardev=socket,id=m,path=qmp,server=on,wait=off'];
    daemon = spawn(process.execPath, [program('vduse-storage-daemon'), ...args, '--monitor=m'], {
      cwd: directory,
      stdio: 'ignore',
    });
    await until('the monitor', () => existsSync(inDirectory('qmp')));
  });
  after(async () => {
    const ended = once(daemon, 'exit');
    daemon.kill('SIGTERM');
    await ended;
  });

  it('executes one command', () => {
    const { status, stdout } = qmp(['query-block-exports']);
    assert.deepEqual([status, stdout], [0, '[]\n']);
    const refused = qmp(['block_resize', 'node-name=none', 'size=512']);
    assert.deepEqual([refused.status, refused.stdout], [1, '']);
    assert.match(refused.stderr, /^vduse: Cannot find device='' nor node-name='none'\n$/);
    assert.deepEqual(qmp(['block_resize', 'node-name=n', 'size=2M']).stdout, '{}\n');
    const mistyped = qmp(['query-job']);
    assert.match(mistyped.stderr, /has not been found\n {2}hint: Did you mean query-jobs\?\n$/);
    assert.deepEqual(qmp(['{"execute": "query-jobs"}']).stdout, '[]\n');
    assert.match(qmp(['query-jobs', 'what']).stderr, /^vduse: 'what' is no KEY=VALUE\n {2}hint: /);
    assert.equal(qmp(['query-jobs', 'what']).status, 2);
  });

  it('executes the commands of a pipe, and says whether one was refused', () => {
    const { status, stdout, stderr } = qmp([], 'query-jobs\nquery-block-exports\n');
    assert.deepEqual([status, stdout, stderr], [0, '[]\n[]\n', '']);
    const refused = qmp([], 'no-such-command\nquery-jobs\n');
    assert.deepEqual([refused.status, refused.stdout], [1, '[]\n']);
    assert.match(
      refused.stderr,
      /^error: The command no-such-command has not been found\n {2}hint: query-commands lists what there is\.\n$/,
    );
    assert.equal(existsSync(inDirectory('state')), false, 'what nobody typed is not remembered');
  });

  it('is a shell on a terminal', async (context) => {
    if (spawnSync('script', ['--version']).status !== 0) {
      context.skip('there is no script(1)');
      return;
    }
    const command = `'${process.execPath}' '${program('vduse')}' qmp ./qmp`;
    const child = spawn('script', ['--quiet', '--return', '--command', command, '/dev/null'], {
      cwd: directory,
      env,
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let screen = '';
    child.stdout.on('data', (chunk: Buffer) => {
      screen += stripVTControlCharacters(chunk.toString());
    });
    const type = async (keys: string, answer: RegExp): Promise<void> => {
      const from = screen.length;
      child.stdin.write(keys);
      await until(`${answer}`, () => answer.test(screen.slice(from)));
    };
    const ended = once(child, 'close');
    await type('', /\(qmp\) $/);
    await type('query-block-e\t', /query-block-exports $/);
    await type('\r', /\[\]\r\n\(qmp\) $/);
    await type('\x1b[A', /query-block-exports $/);
    await type('\x15exit\r', /exit/);
    assert.deepEqual(await ended, [0, null]);
    assert.equal(readFileSync(inDirectory('state/vduse/qmp-history'), 'utf8'), 'query-block-exports\n');
  });
});
