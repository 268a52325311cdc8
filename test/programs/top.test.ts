/** vduse top with a storage daemon: what goes to a pipe or a file is a table an interval, whoever looks. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const program = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const directory = makeTempDir();
const inDirectory = { cwd: directory, encoding: 'utf8' } as const;

describe('vduse top', () => {
  let daemon: ChildProcess;

  before(async () => {
    const args = [
      '--blockdev=null-co,node-name=n',
      '--nbd-server=addr.type=unix,addr.path=nbd',
      '--export=nbd,id=e,node-name=n',
      '--chardev=socket,id=m,path=qmp,server=on,wait=off',
      '--monitor=m',
    ];
    daemon = spawn(process.execPath, [program('vduse-storage-daemon'), ...args], {
      cwd: directory,
      stdio: 'ignore',
    });
    await until('the monitor', () => existsSync(join(directory, 'qmp')));
  });
  after(async () => {
    const ended = once(daemon, 'exit');
    daemon.kill('SIGTERM');
    await ended;
  });

  it('prints a table, or an object, an interval', () => {
    const args = [program('vduse'), 'top', './qmp', '--interval', '50', '--count', '2'];
    const table = spawnSync(process.execPath, args, inDirectory);
    assert.equal(table.status, 0);
    assert.match(table.stdout, /^(EXPORT +NODE .*\ne +n +0 +0 .*\n){2}$/);
    const { status, stdout } = spawnSync(process.execPath, [...args, '--json'], inDirectory);
    assert.equal(status, 0);
    const ids = stdout
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { exports: { id: string }[] }).exports.map(({ id }) => id));
    assert.deepEqual(ids, [['e'], ['e']]);
  });

  it('says that the daemon has ended', async () => {
    const args = ['--blockdev=null-co,node-name=n', '--chardev=socket,id=m,path=other,server=on,wait=off'];
    const other = spawn(process.execPath, [program('vduse-storage-daemon'), ...args, '--monitor=m'], {
      cwd: directory,
      stdio: 'ignore',
    });
    await until('the monitor', () => existsSync(join(directory, 'other')));
    const top = spawn(process.execPath, [program('vduse'), 'top', './other', '--interval', '50'], {
      cwd: directory,
    });
    let told = '';
    top.stderr.on('data', (chunk: Buffer) => {
      told += chunk;
    });
    const ended = once(top, 'close');
    await once(top.stdout, 'data');
    other.kill('SIGTERM');
    await once(other, 'exit');
    assert.deepEqual(await ended, [1, null]);
    assert.match(told, /^vduse: .*other: the .* has ended the connection\n$/);
  });

  it('prints the same to a file where messages go to a terminal', (context) => {
    if (spawnSync('script', ['--version']).status !== 0) {
      context.skip('there is no script(1)');
      return;
    }
    const command = `'${process.execPath}' '${program('vduse')}' top ./qmp --interval 50 --count 1 > table`;
    spawnSync('script', ['--quiet', '--return', '--command', command, '/dev/null'], inDirectory);
    assert.match(readFileSync(join(directory, 'table'), 'utf8'), /^EXPORT +NODE .*\ne +n +0 +0 .*\n$/);
  });
});
