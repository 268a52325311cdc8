/** vduse list beside a storage daemon and a vhost-user export, neither of which needs the kernel's VDUSE. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const program = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);
const env = { ...process.env, VDUSE_RUN_DIR: inDirectory('run') };

function list(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program('vduse'), 'list', ...args], {
    cwd: directory,
    encoding: 'utf8',
    env,
  });
  return { status, stdout, stderr };
}

describe('vduse list', () => {
  const children: ChildProcess[] = [];
  const start = (name: string, args: string[]): void => {
    children.push(
      spawn(process.execPath, [program(name), ...args], { cwd: directory, env, stdio: 'ignore' }),
    );
  };

  before(async () => {
    makeSparseFile(inDirectory('a.img'), 1 << 20);
    start('vduse', ['export', 'a.img', '--vhost-user', 'a.sock']);
    start('vduse-storage-daemon', [
      '--blockdev=null-co,node-name=n,size=1M',
      '--nbd-server=addr.type=unix,addr.path=nbd',
      '--export=nbd,id=e,node-name=n',
      '--chardev=socket,id=m,path=qmp,server=on,wait=off',
      '--monitor=m',
    ]);
    await until('the two', () => existsSync(inDirectory('run/a.sock')) && existsSync(inDirectory('qmp')));
    // A socket that nobody listens on any more is no export.
    writeFileSync(inDirectory('run/dead.sock'), '');
  });
  after(async () => {
    for (const child of children) {
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    }
  });

  it('shows what is exported without VDUSE, where it is and who serves it', () => {
    const { status, stdout } = list('--json');
    assert.equal(status, 0);
    const found = (JSON.parse(stdout) as Record<string, unknown>[]).filter(({ name }) => name === 'a');
    assert.deepEqual(found, [
      {
        name: 'a',
        type: 'vhost-user-blk',
        state: 'served',
        pid: children[0].pid,
        command: 'vduse: a',
        attached: true,
        driver: null,
        path: inDirectory('a.sock'),
        size: 1 << 20,
        image: inDirectory('a.img'),
        readOnly: false,
      },
    ]);
    const text = list().stdout;
    assert.match(text, /^NAME +TYPE +PATH +SIZE +STATE +DRIVER +IMAGE\n/);
    assert.match(text, /^a +vhost-user-blk +\/.*a\.sock +1 MiB +served by \d+ \(vduse: a\) +- +\/.*a\.img$/m);
  });

  it('shows the exports of daemons by their monitors', () => {
    const { status, stdout } = list('--monitor', './qmp', '--monitor', 'a', '--json');
    assert.equal(status, 0);
    const exports = JSON.parse(stdout) as Record<string, unknown>[];
    assert.deepEqual(
      exports.map(({ monitor, id, type, node, size }) => [monitor, id, type, node, size]),
      [
        ['./qmp', 'e', 'nbd', 'n', 1 << 20],
        ['a', 'a', 'vhost-user-blk', 'disk', 1 << 20],
      ],
    );
    assert.match(
      list('--monitor', 'a').stdout,
      /^EXPORT +TYPE +NODE +SIZE +STATE +IMAGE\na +vhost-user-blk +disk +1 MiB +served +\/.*a\.img\n$/,
    );
  });

  it('takes a word that is no device for a socket of that name', () => {
    const { status, stdout } = list('--monitor', 'qmp', '--json');
    assert.equal(status, 0);
    assert.deepEqual(
      (JSON.parse(stdout) as Record<string, unknown>[]).map(({ monitor, id }) => [monitor, id]),
      [['qmp', 'e']],
    );
  });

  it('has one disk of a name, whose socket has a place of its own', () => {
    writeFileSync(inDirectory('b.img'), '');
    truncateSync(inDirectory('b.img'), 1 << 20);
    const refused = (...args: string[]) => {
      const all = [program('vduse'), 'export', 'b.img', '--vhost-user', ...args];
      return spawnSync(process.execPath, all, { cwd: directory, encoding: 'utf8', env }).stderr;
    };
    assert.match(
      refused('b.sock', '--name', 'a'),
      /^vduse: a disk 'a' is served already\n {2}hint: .*--name/,
    );
    assert.match(refused('no/b.sock'), /cannot listen at no\/b\.sock: no such .*\n {2}hint: .*mkdir -p no\n/);
    assert.match(refused('a.img'), /a\.img: it exists and is not a socket\n {2}hint: Choose another path/);
  });

  it('says why there is no monitor', () => {
    const { status, stderr } = list('--monitor', './none');
    assert.equal(status, 1);
    assert.match(stderr, /^vduse: cannot connect to a monitor: there is no \.\/none\n {2}hint: /);
    const byName = list('--monitor', 'none');
    assert.match(byName.stderr, /monitor: there is neither a device 'none' nor a socket .*\/none\.sock\n/);
    const inFile = list('--monitor', fileURLToPath(import.meta.url));
    assert.match(inFile.stderr, /list\.test\.js is no socket\n/);
  });
});
