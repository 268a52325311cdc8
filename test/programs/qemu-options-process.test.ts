import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { QmpClient } from '../qmp/client.js';
import { makeSparseFile } from '../support/sparse-file.js';

const program = fileURLToPath(new URL('../../src/cli/vduse-storage-daemon.js', import.meta.url));
const START_MS_MAX = 30_000;

let directory: string;
let image: string;
let socket: string;
const processes: Started[] = [];

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

class Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  stderr = '';

  constructor(args: readonly string[]) {
    this.child = spawn(process.execPath, [program, ...args], { cwd: directory });
    let stdout = '';
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
    });
    this.ended = once(this.child, 'close').then(([status]) => ({ status, stdout, stderr: this.stderr }));
  }

  async says(pattern: RegExp): Promise<void> {
    await until(() => pattern.test(this.stderr) || this.child.exitCode !== null);
    assert.match(this.stderr, pattern);
  }
}

async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + START_MS_MAX;
  while (!condition()) {
    assert.ok(Date.now() < deadline, 'it did not happen');
    await delay(10);
  }
}

function start(...args: string[]): Started {
  const started = new Started(args);
  processes.push(started);
  return started;
}

const monitorOf = (path: string) => [
  '--chardev',
  `socket,id=m,path=${path},server=on,wait=off`,
  '--monitor',
  'm',
];

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return readFileSync(`/proc/${pid}/stat`, 'latin1').split(') ')[1][0] !== 'Z';
  } catch {
    return false;
  }
}

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-process-'));
  image = join(directory, 'd.img');
  socket = join(directory, 'qmp.sock');
  makeSparseFile(image, 1 << 20);
});

afterEach(async () => {
  for (const { child, ended } of processes.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL');
    }
    await ended;
  }
  rmSync(directory, { recursive: true });
});

describe('the storage daemon as a process', () => {
  it('serves until it is told to end, and leaves nothing', async () => {
    const daemon = start(
      ...monitorOf('qmp.sock'),
      '--pidfile',
      'pid',
      '--blockdev',
      `file,node-name=disk0,filename=${image}`,
    );
    await daemon.says(/ready/);
    assert.equal(readFileSync(join(directory, 'pid'), 'utf8'), `${daemon.child.pid}\n`);
    const client = await QmpClient.open(socket);
    const nodes = (await client.execute('query-named-block-nodes'))['return'] as { 'node-name': string }[];
    assert.equal(nodes[0]['node-name'], 'disk0');
    assert.deepEqual(await client.execute('quit'), { return: {} });
    assert.equal(await client.next(), undefined);
    assert.equal((await daemon.ended).status, 0);
    assert.deepEqual(readdirSync(directory), ['d.img']);
  });

  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    it(`ends in order on ${signal}, also when it comes twice`, async () => {
      const daemon = start(...monitorOf(socket), '--pidfile', 'pid');
      await daemon.says(/ready/);
      daemon.child.kill(signal);
      daemon.child.kill(signal);
      const { status, stderr } = await daemon.ended;
      assert.equal(status, 0);
      assert.match(stderr, new RegExp(`shutting down: ${signal} received`));
      assert.deepEqual(readdirSync(directory), ['d.img']);
    });
  }

  it('lives without anything to serve', async () => {
    const daemon = start('--blockdev', 'null-co,node-name=a');
    await daemon.says(/ready/);
    await delay(300);
    assert.equal(daemon.child.exitCode, null);
    daemon.child.kill('SIGTERM');
    assert.equal((await daemon.ended).status, 0);
  });

  it('ends in the middle of its start-up', async () => {
    const daemon = start('--chardev', `socket,id=m,path=${socket},server=on`, '--monitor', 'm');
    await daemon.says(/waiting for a connection on: disconnected:unix:/);
    assert.ok(existsSync(socket));
    daemon.child.kill('SIGTERM');
    assert.equal((await daemon.ended).status, 0);
    assert.deepEqual(readdirSync(directory), ['d.img']);
  });

  it('takes down what it had set up when a later option fails', async () => {
    const daemon = start(
      ...monitorOf(socket),
      '--blockdev',
      `file,node-name=disk0,filename=${image}`,
      '--blockdev',
      `file,node-name=disk1,filename=${directory}/none`,
    );
    const { status, stderr } = await daemon.ended;
    assert.equal(status, 1);
    assert.match(
      stderr,
      /^vduse-storage-daemon: --blockdev file,node-name=disk1,filename=.*none: .*no such file/m,
    );
    assert.deepEqual(readdirSync(directory), ['d.img']);
  });

  it('prints what was asked for, and errors, where they belong', async () => {
    const version = await start('--version').ended;
    assert.deepEqual([version.status, version.stderr], [0, '']);
    assert.match(version.stdout, /^vduse-storage-daemon version/);
    const failed = await start('--nonsense').ended;
    assert.deepEqual(failed, {
      status: 1,
      stdout: '',
      stderr: "vduse-storage-daemon: unrecognized option '--nonsense'\nsee vduse-storage-daemon --help\n",
    });
  });

  it('writes its log as lines of JSON when asked', async () => {
    const daemon = start('--log-format', 'json', '--trace', 'x');
    await daemon.says(/"msg":"ready"/);
    daemon.child.kill('SIGTERM');
    const lines = (await daemon.ended).stderr.trim().split('\n');
    assert.deepEqual(
      lines.map((line) => JSON.parse(line).msg.split(':')[0]),
      ['--trace has no effect', 'ready', 'shutting down'],
    );
  });
});

describe('the storage daemon in the background', () => {
  const background: number[] = [];

  afterEach(async () => {
    for (const pid of background.splice(0)) {
      if (isAlive(pid)) {
        process.kill(pid, 'SIGTERM');
        await until(() => !isAlive(pid));
      }
    }
  });

  it('is ready when its starter returns, whose output then ends', async () => {
    const pidFile = join(directory, 'pid');
    const starter = start('--daemonize', ...monitorOf('qmp.sock'), '--pidfile', 'pid', '--trace', 'x');
    const { status, stderr } = await starter.ended;
    assert.equal(status, 0);
    assert.match(stderr, /--trace has no effect/);
    const pid = Number(readFileSync(pidFile, 'utf8'));
    background.push(pid);
    assert.notEqual(pid, starter.child.pid);
    assert.ok(isAlive(pid));
    const client = await QmpClient.open(socket);
    assert.deepEqual(await client.execute('query-block-exports'), { return: [] });
    // Nobody reads its log any more; writing it must not end it.
    assert.ok('error' in (await client.execute('object-del', { id: 'x' })));
    process.kill(pid, 'SIGTERM');
    assert.equal(await client.next(), undefined);
    await until(() => !isAlive(pid));
    assert.deepEqual(readdirSync(directory), ['d.img']);
  });

  it('fails with its starter when it cannot start', async () => {
    const failed = await start('--daemonize', '--blockdev', `file,node-name=a,filename=${directory}/none`)
      .ended;
    assert.equal(failed.status, 1);
    assert.match(failed.stderr, /^vduse-storage-daemon: --blockdev .*no such file/m);
    assert.equal(failed.stdout, '');
    const refused = await start('--daemonize', '--blockdev', 'nonsense').ended;
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /does not accept value 'nonsense'/);
  });

  it('ends when its starter is ended before it was ready', async () => {
    const starter = start('--daemonize', '--chardev', `socket,id=m,path=${socket},server=on`);
    await starter.says(/waiting for a connection/);
    starter.child.kill('SIGTERM');
    assert.equal((await starter.ended).status, 1);
    assert.deepEqual(readdirSync(directory), ['d.img']);
  });

  it('ends when its starter just vanishes before it was ready', async () => {
    const starter = start('--daemonize', '--chardev', `socket,id=m,path=${socket},server=on`);
    await starter.says(/waiting for a connection/);
    starter.child.kill('SIGKILL');
    await starter.ended;
    await until(() => !existsSync(socket));
  });
});
