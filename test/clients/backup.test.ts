/** The daemon and its commands, driven by QMP, while qemu-io and fio write the disk over NBD. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Message, QmpClient } from '../qmp/client.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { makeRandom, runProgram } from './programs.js';

const mib = 64;
const program = join(import.meta.dirname, '../../src/cli/vduse-storage-daemon.js');

describe('blockdev-backup under a load over NBD', { timeout: 120_000 }, () => {
  const directory = makeTempDir();
  const path = (name: string): string => join(directory, name);
  const uri = `nbd+unix:///disk?socket=${path('nbd')}`;
  let daemon: ChildProcess;
  let client: QmpClient;

  before(async () => {
    makeRandom(path('disk'), mib);
    for (const name of ['copy', 'second']) {
      makeSparseFile(path(name), mib << 20);
    }
    const node = (name: string) => [
      '--blockdev',
      `file,node-name=${name},filename=${path(name)},discard=unmap`,
    ];
    daemon = spawn(
      process.execPath,
      [
        program,
        ...node('disk'),
        ...node('copy'),
        ...node('second'),
        ...['--nbd-server', `addr.type=unix,addr.path=${path('nbd')}`],
        ...['--export', 'nbd,id=e,node-name=disk,name=disk,writable=on'],
        ...['--chardev', `socket,id=mon,path=${path('qmp')},server=on,wait=off`, '--monitor', 'mon'],
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    for (;;) {
      try {
        client = await QmpClient.open(path('qmp'));
        return;
      } catch (error) {
        assert.equal(daemon.exitCode, null, String(error));
        await delay(20);
      }
    }
  });

  after(async () => {
    client?.close();
    daemon.kill('SIGTERM');
    await once(daemon, 'exit');
    assert.equal(daemon.exitCode, 0);
  });

  /** Waits for events until one of the name has come for each of the jobs. */
  async function ends(...jobs: string[]): Promise<Message[]> {
    const events: Message[] = [];
    const waiting = new Set(jobs);
    while (waiting.size > 0) {
      const message = await client.read();
      if (message['event'] === 'BLOCK_JOB_COMPLETED') {
        events.push(message);
        waiting.delete((message['data'] as { device: string }).device);
      }
    }
    return events;
  }

  async function execute(command: string, args: object): Promise<void> {
    client.send(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    for (;;) {
      const message = await client.read();
      if (!('event' in message)) {
        assert.deepEqual(message, { return: {} });
        return;
      }
    }
  }

  test('the copy is the disk before the first write, whatever fio overwrites meanwhile', async (t) => {
    copyFileSync(path('disk'), path('before'));
    await execute('blockdev-backup', {
      'job-id': 'b',
      device: 'disk',
      target: 'copy',
      sync: 'full',
      speed: 8 << 20,
    });
    const load = runProgram('fio', [
      '--name=load',
      '--ioengine=nbd',
      `--uri=${uri}`,
      '--rw=randwrite',
      '--bsrange=4k-256k',
      '--iodepth=16',
      `--size=${mib}m`,
      '--verify=crc32c',
      '--randrepeat=0',
    ]);
    const [end] = await ends('b');
    assert.equal((end['data'] as { error?: string }).error, undefined);
    assert.match(await load, /err= 0/);
    assert.ok(readFileSync(path('copy')).equals(readFileSync(path('before'))));
    assert.ok(!readFileSync(path('disk')).equals(readFileSync(path('before'))));
    t.diagnostic(JSON.stringify(end['data']));
  });

  test('two copies of a transaction are equal, and qemu-io reads the one while it is made', async () => {
    await runProgram('qemu-io', ['-f', 'raw', '-c', 'write -P 0x11 0 32M', uri]);
    const action = (id: string, target: string, speed: number) => ({
      type: 'blockdev-backup',
      data: { 'job-id': id, device: 'disk', target, sync: 'full', speed },
    });
    await execute('transaction', {
      actions: [action('x', 'copy', 0), action('y', 'second', 16 << 20)],
      properties: { 'completion-mode': 'grouped' },
    });
    await runProgram('qemu-io', [
      ...['-f', 'raw', '-c', 'write -P 0x22 4M 2M', '-c', 'discard 8M 1M', '-c', 'write -z 10M 3M'],
      ...['-c', 'aio_write -P 0x33 20M 64k', '-c', 'aio_write -P 0x44 20544k 64k', '-c', 'aio_flush', uri],
    ]);
    await ends('x', 'y');
    const copies = [readFileSync(path('copy')), readFileSync(path('second'))];
    assert.ok(copies[0].equals(copies[1]));
    assert.ok(copies[0].subarray(0, 32 << 20).equals(Buffer.alloc(32 << 20, 0x11)));
    const pattern = (byte: string, at: string, length: string) => ['-c', `read -P ${byte} ${at} ${length}`];
    await runProgram('qemu-io', [
      ...['-f', 'raw', '-r', ...pattern('0x22', '4M', '2M'), ...pattern('0', '10M', '3M')],
      ...[...pattern('0x33', '20M', '64k'), ...pattern('0x44', '20544k', '64k'), uri],
    ]);
  });
});
