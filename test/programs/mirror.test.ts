/** vduse mirror with a storage daemon, as people run the two. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const MiB = 1 << 20;
const size = 16 * MiB;
const program = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);

describe('vduse mirror', () => {
  let daemon: ChildProcess;

  async function start(): Promise<void> {
    writeFileSync(inDirectory('disk.img'), new Uint8Array(size).fill(1));
    rmSync(inDirectory('qmp'), { force: true });
    const args = [
      '--blockdev=file,node-name=disk,filename=disk.img',
      '--nbd-server=addr.type=unix,addr.path=nbd',
      '--export=nbd,id=e,node-name=disk,writable=on',
      '--chardev=socket,id=m,path=qmp,server=on,wait=off',
      '--monitor=m',
    ];
    daemon = spawn(process.execPath, [program('vduse-storage-daemon'), ...args], {
      cwd: directory,
      stdio: 'ignore',
    });
    await until('the monitor', () => existsSync(inDirectory('qmp')));
  }

  async function stop(signal: NodeJS.Signals): Promise<void> {
    if (daemon.exitCode !== null || daemon.signalCode !== null) {
      return;
    }
    const ended = once(daemon, 'exit');
    daemon.kill(signal);
    await ended;
  }

  before(start);
  after(() => stop('SIGTERM'));

  const args = (...more: string[]) => [program('vduse'), 'mirror', '--monitor', './qmp', ...more];

  /** Runs a slow one, and does something when its second event comes. */
  async function interrupt(act: (child: ChildProcess) => void) {
    const child = spawn(process.execPath, args('disk', 'new.img', '--create', '--speed=1M', '--json'), {
      cwd: directory,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const ended = once(child, 'close');
    const events: Record<string, unknown>[] = [];
    for await (const line of createInterface(child.stdout)) {
      if (events.push(JSON.parse(line) as Record<string, unknown>) === 2) {
        act(child);
      }
    }
    const [status] = (await ended) as [number];
    return { status, events };
  }

  it('is cancelled by Ctrl-C, and the node stays in use', async () => {
    const { status, events } = await interrupt((child) => child.kill('SIGINT'));
    assert.equal(status, 130);
    const { event, code, message } = events.at(-1) ?? {};
    assert.deepEqual([event, code], ['error', 'ABORTED']);
    assert.match(
      String(message),
      /^SIGINT: job 'mirror-disk' is cancelled; node 'disk' \(disk\.img\) stays in use$/,
    );
    assert.equal(existsSync(inDirectory('new.img')), false);
    const left = spawnSync(process.execPath, [program('vduse'), 'qmp', './qmp', 'query-named-block-nodes'], {
      cwd: directory,
      encoding: 'utf8',
    });
    assert.deepEqual(
      (JSON.parse(left.stdout) as { 'node-name': string }[]).map((node) => node['node-name']),
      ['disk'],
    );
  });

  it('moves it, and says so', () => {
    const { status, stdout } = spawnSync(process.execPath, args('disk', 'new.img', '--create'), {
      cwd: directory,
      encoding: 'utf8',
    });
    assert.equal(status, 0);
    assert.match(stdout, /^what used node 'disk' \(1 export: e\) now uses node 'disk-1' \(.*\/new\.img\); /);
    assert.ok(readFileSync(inDirectory('new.img')).equals(readFileSync(inDirectory('disk.img'))));
  });

  it('does not know what became of it when the daemon dies, and takes nothing away', async () => {
    await stop('SIGTERM');
    await start();
    const target = ['disk', 'other.img', '--create', '--speed=1M', '--json'];
    const child = spawn(process.execPath, args(...target), {
      cwd: directory,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const ended = once(child, 'close');
    let last = '';
    for await (const line of createInterface(child.stdout)) {
      if (line.includes('"progress"') && last.includes('"started"')) {
        await stop('SIGKILL');
      }
      last = line;
    }
    assert.deepEqual(await ended, [1, null]);
    assert.match(
      last,
      /"code":"ABORTED","message":"what becomes of job 'mirror-disk' can't be seen any more"/,
    );
    assert.ok(existsSync(inDirectory('other.img')));
  });
});
