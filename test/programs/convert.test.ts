/** vduse convert as people run it, between files; storage of other programs is in test/clients. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ScriptedServer } from '../support/scripted-nbd-server.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);

function convert(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, 'convert', ...args], {
    cwd: directory,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

function image(name: string, size: number, fill = 0): Uint8Array {
  const bytes = new Uint8Array(size);
  bytes.fill(fill, 0, Math.min(size, MiB));
  writeFileSync(inDirectory(name), bytes.subarray(0, MiB));
  truncateSync(inDirectory(name), size);
  return bytes;
}

describe('vduse convert', () => {
  it('makes the target, leaves holes where the source has them, and compares', () => {
    const bytes = image('source', 8 * MiB + 512, 5);
    const { status, stdout, stderr } = convert('source', 'made', '--create', '--verify');
    assert.deepEqual([status, stderr], [0, '']);
    assert.match(stdout, /^source -> made: 8\.0 MiB in (\d+ ms|\d\.\d s) \(.*\/s\), compared and equal\n$/);
    assert.ok(readFileSync(inDirectory('made')).equals(bytes));
    assert.ok(statSync(inDirectory('made')).blocks * 512 < 2 * MiB);
  });

  it('overwrites a target that is there, and leaves what is beyond', () => {
    image('source', 2 * MiB, 1);
    writeFileSync(inDirectory('large'), new Uint8Array(3 * MiB).fill(9));
    const { status, stdout, stderr } = convert('source', 'large');
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^source -> large: 2 MiB in /);
    assert.match(stderr, /^large is larger: what it holds beyond 2 MiB is as it was\n$/);
    const bytes = readFileSync(inDirectory('large'));
    assert.deepEqual([bytes[0], bytes[MiB], bytes[2 * MiB - 1], bytes[2 * MiB]], [1, 0, 0, 9]);
  });

  it('takes filenames with options', () => {
    image('disk', 2 * MiB, 3);
    const part = 'driver=raw,offset=512,size=1M,file.driver=file,file.filename=disk';
    assert.equal(convert(part, 'json:{"driver": "file", "filename": "part"}', '--create').status, 0);
    const bytes = readFileSync(inDirectory('part'));
    assert.deepEqual([bytes.length, bytes[0], bytes[MiB - 513], bytes[MiB - 512]], [MiB, 3, 3, 0]);
  });

  it('prints events for programs', () => {
    image('source', 2 * MiB, 1);
    const { status, stdout, stderr } = convert('source', 'events', '--create', '--verify', '--json');
    assert.deepEqual([status, stderr], [0, '']);
    const events = stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    const phases = events.filter(({ event }) => event === 'progress').map(({ phase }) => phase);
    assert.deepEqual([...new Set(phases)], ['copying', 'comparing']);
    const { event, source, target, bytes, targetSize, verified } = events.at(-1) ?? {};
    assert.deepEqual(
      { event, source, target, bytes, targetSize, verified },
      {
        event: 'done',
        source: 'source',
        target: 'events',
        bytes: 2 * MiB,
        targetSize: 2 * MiB,
        verified: true,
      },
    );
    const failed = convert('source', 'absent', '--json');
    assert.equal(failed.status, 1);
    const { message, ...rest } = JSON.parse(failed.stdout) as Record<string, unknown>;
    assert.equal(message, "there is no 'absent'");
    assert.deepEqual(rest, {
      event: 'error',
      code: 'NOT_FOUND',
      hint: 'Check the path, or let it be made: --create.',
    });
  });

  it('says what is wrong, and leaves everything as it was', () => {
    image('source', 2 * MiB, 1);
    image('small', MiB, 2);
    const wrong: [string[], number, RegExp][] = [
      [['source'], 2, /missing required argument 'target'/],
      [['source', './source'], 2, /'source' and '.\/source' are the same image/],
      [['source', 'small', '--force'], 2, /--force is for --create/],
      [['source', 'rbd:pool/image', '--create'], 2, /--create makes image files/],
      [['source', 'what:ever'], 2, /Unknown protocol 'what'/],
      [['source', 'new', '--create', '--speed', 'fast'], 2, /--speed: size 'fast': it is no size/],
      [['source', 'new', '--create', '--object', 'secret,id=k'], 2, /--object: /],
      [['absent', 'new', '--create'], 1, /cannot open '.*absent': no such file/],
      [['source', 'small'], 1, /'small' has 1 MiB .*, too few for the 2 MiB .* of 'source'/],
      [['source', 'small', '--create'], 1, /exists already\n {2}hint: .*--force/],
      [['source', 'absent'], 1, /there is no 'absent'\n {2}hint: .*--create/],
      [['source', 'no/where', '--create'], 1, /its directory does not exist/],
    ];
    for (const [args, expected, message] of wrong) {
      const { status, stdout, stderr } = convert(...args);
      assert.equal(status, expected, `${args.join(' ')}: ${stderr}`);
      assert.match(stderr, message);
      assert.equal(stdout, '');
    }
    assert.equal(existsSync(inDirectory('new')), false);
    assert.equal(readFileSync(inDirectory('small'))[0], 2);
    assert.equal(convert('source', 'small', '--create', '--force').status, 0);
    assert.ok(readFileSync(inDirectory('small')).equals(readFileSync(inDirectory('source'))));
  });

  for (const [target, args, left] of [
    ['fresh', ['--create'], /'fresh', which it had made, is removed again/],
    ['old', [], /'old' holds a part of it and is of no use/],
  ] as const) {
    it(`is interrupted: ${target}`, async () => {
      writeFileSync(inDirectory('slow'), new Uint8Array(32 * MiB).fill(1));
      image('old', 32 * MiB);
      const child = spawn(
        process.execPath,
        [program, 'convert', 'slow', target, '--speed', '4M', '--json', ...args],
        {
          cwd: directory,
          stdio: ['ignore', 'pipe', 'inherit'],
        },
      );
      const ended = once(child, 'close');
      const lines: string[] = [];
      for await (const line of createInterface(child.stdout)) {
        if (lines.push(line) === 1) {
          child.kill('SIGINT');
        }
      }
      assert.deepEqual(await ended, [130, null]);
      const { event, code, message } = JSON.parse(lines.at(-1) ?? '') as Record<string, unknown>;
      assert.deepEqual([event, code], ['error', 'ABORTED']);
      assert.match(String(message), /^SIGINT: the copy is not finished; /);
      assert.match(String(message), left);
      assert.equal(existsSync(inDirectory('fresh')), false);
    });
  }

  it('ends at once by a second signal, where storage hangs', async () => {
    image('slow', 2 * MiB, 1);
    const server = new ScriptedServer({ size: 2 * MiB, onRequest: () => undefined });
    await server.listenTcp();
    const { port } = server.inetAddress;
    const child = spawn(process.execPath, [program, 'convert', 'slow', `nbd://127.0.0.1:${port}/`], {
      cwd: directory,
    });
    let said = '';
    child.stderr.on('data', (data: Buffer) => {
      said += data.toString();
    });
    const ended = once(child, 'close');
    while (server.requests.length === 0) {
      await delay(10);
    }
    child.kill('SIGINT');
    while (!said.includes('Once more to end at once')) {
      await delay(10);
      assert.equal(child.exitCode, null);
    }
    child.kill('SIGINT');
    assert.deepEqual(await ended, [130, null]);
    await server.stop();
  });
});
