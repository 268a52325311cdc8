/** vduse bench as people run it: that figures are there, and that nothing is overwritten by mistake. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const directory = makeTempDir();
const image = join(directory, 'disk.img');

function bench(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, 'bench', ...args], {
    cwd: directory,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

describe('vduse bench', () => {
  it('prints figures for people', () => {
    const { status, stdout, stderr } = bench(
      'null:1M',
      '--rw',
      'randrw',
      '--runtime',
      '0.1',
      '--numjobs',
      '2',
    );
    assert.deepEqual([status, stderr], [0, '']);
    const time = String.raw`\d+(\.\d)?(us|ms|s)`;
    const figures = String.raw`\S+ IOPS {2}\S+ \S+/s {2}mean ${time} {2}p50 ${time} {2}p99 ${time} {2}p99\.9 ${time} {2}max ${time}`;
    const lines = [
      String.raw`null:1M: randrw, blocks of 4 KiB, depth 32, 2 jobs, 0\.\d s`,
      ` {2}read {3}${figures}`,
      ` {2}write {2}${figures}`,
      String.raw` {2}cpu {4}${time} a request \(${time} user, ${time} system\), \d+% of a processor`,
    ];
    assert.match(stdout, new RegExp(`^${lines.join('\n')}\n$`));
  });

  it('prints figures for programs', () => {
    writeFileSync(image, new Uint8Array(1 << 20).fill(7));
    const { status, stdout } = bench('disk.img', '--json', '--runtime', '0.1', '--bs', '8K', '--size', '64K');
    assert.equal(status, 0);
    const { node, rw, bs, blocks, errors, read, write } = JSON.parse(stdout) as Record<string, never>;
    assert.deepEqual([node, rw, bs, blocks, errors], ['disk.img', 'randread', 8192, 8, 0]);
    for (const key of ['iops', 'bytesPerSecond', 'p50Us', 'p99Us', 'p999Us', 'maxUs']) {
      assert.equal(typeof read[key], 'number', key);
    }
    assert.equal(write['ios'], 0);
  });

  it('writes only when that is confirmed, and only where it is told to', () => {
    writeFileSync(image, new Uint8Array(1 << 20).fill(7));
    for (const rw of ['write', 'randwrite', 'rw', 'randrw']) {
      const { status, stderr } = bench('disk.img', '--rw', rw, '--size', '64K', '--offset', '4K');
      assert.equal(status, 2);
      assert.match(
        stderr,
        /would overwrite 64 KiB of 'disk\.img', from byte 4096 on: .* lost\n {2}hint: Add --write/,
      );
    }
    assert.ok(readFileSync(image).every((byte) => byte === 7));
    const args = ['--rw', 'randwrite', '--size', '64K', '--offset', '4K', '--runtime', '0.1', '--write'];
    assert.equal(bench('disk.img', ...args).status, 0);
    const bytes = readFileSync(image);
    assert.ok(bytes.subarray(4096, 4096 + 65_536).some((byte) => byte !== 7));
    assert.ok(bytes.subarray(0, 4096).every((byte) => byte === 7));
    assert.ok(bytes.subarray(4096 + 65_536).every((byte) => byte === 7));
  });

  it('says what is wrong', () => {
    writeFileSync(image, new Uint8Array(1 << 20));
    const wrong: [string[], number, RegExp][] = [
      [[], 2, /missing required argument 'node'/],
      [['disk.img', '--rw', 'sideways'], 2, /Allowed choices are read, write, randread/],
      [['disk.img', '--bs', '100'], 2, /--bs: blocks have 512 bytes to 16 MiB/],
      [['disk.img', '--bs', '16M', '--iodepth', '65'], 2, /more than 1 GiB of memory/],
      [['disk.img', '--iodepth', '0'], 2, /--iodepth: '0' is no whole number from 1 to 1024/],
      [['disk.img', '--runtime', 'long'], 2, /--runtime: 'long' is no number of seconds/],
      [['disk.img', '--rwmixread', '101'], 2, /--rwmixread: /],
      [['disk.img', '--bs', '1000'], 1, /--bs 1000: the node takes multiples of 512 bytes/],
      [['disk.img', '--offset', '100'], 1, /--offset 100: the node takes multiples/],
      [['disk.img', '--size', '2M'], 1, /--offset and --size: the node has 1048576 bytes/],
      [['disk.img', '--bs', '2M'], 1, /there is no room for one block/],
      [['absent.img'], 1, /cannot open '.*absent\.img': no such file/],
    ];
    for (const [args, expected, message] of wrong) {
      const { status, stdout, stderr } = bench(...args);
      assert.equal(status, expected, `${args.join(' ')}: ${stderr}`);
      assert.match(stderr, message);
      assert.equal(stdout, '');
    }
  });

  it('fails when requests fail', () => {
    const failing =
      '{"driver": "fault", "rules": [{"on": "read", "effect": "error"}], "file": {"driver": "memory", "size": 1048576}}';
    const { status, stderr } = bench(`json:${failing}`, '--runtime', '0.1');
    assert.equal(status, 1);
    assert.match(stderr, /\d+ requests have failed; the first one: .*EIO/);
  });

  it('tells what it has when it is interrupted', async () => {
    writeFileSync(image, new Uint8Array(1 << 20));
    const args = ['bench', image, '--rw', 'write', '--write', '--runtime', '600'];
    const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk: Buffer) => {
      output.stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      output.stderr += chunk.toString();
    });
    const ended = once(child, 'close');
    // It listens to signals before it opens what it says that it will overwrite.
    await until('the beginning', () => output.stderr.startsWith('Overwriting 1 MiB of '));
    await delay(200);
    child.kill('SIGINT');
    assert.deepEqual(await ended, [130, null]);
    assert.match(output.stdout, /^ {2}cpu .* a request /m);
    assert.match(output.stderr, /SIGINT: it ended early/);
  });

  it('does not wait for storage that hangs when it is interrupted twice', async () => {
    const hanging =
      '{"driver": "fault", "rules": [{"on": "any", "effect": "disconnect", "delay-ms": 600000}], "file": {"driver": "memory", "size": 1048576}}';
    const args = ['bench', `json:${hanging}`, '--rw', 'write', '--write', '--runtime', '600'];
    const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    const ended = once(child, 'close');
    let stderr = '';
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    await until('the beginning', () => stderr.startsWith('Overwriting 1 MiB of '));
    await delay(200);
    child.kill('SIGINT');
    await delay(500);
    assert.equal(child.exitCode, null, 'it waits for requests in flight');
    child.kill('SIGTERM');
    assert.deepEqual(await ended, [143, null]);
  });
});
