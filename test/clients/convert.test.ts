/** vduse convert to and from servers of somebody else, checked by qemu-img. */
import assert from 'node:assert/strict';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { testRandom } from '../support/random.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { ServerProcess } from './nbd-servers.js';
import { runProgram } from './programs.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const size = 48 << 20;
const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);
const vduse = (...args: string[]) => runProgram(process.execPath, [program, ...args]);
const compare = (a: string, b: string) => runProgram('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', a, b]);

async function serve(image: string, socket: string): Promise<ServerProcess> {
  return ServerProcess.start(
    'qemu-nbd',
    ['--format=raw', `--socket=${socket}`, '--persistent', '--shared=8', '--discard=unmap', image],
    () => existsSync(socket),
  );
}

describe('vduse convert', () => {
  const servers: ServerProcess[] = [];
  after(async () => {
    for (const server of servers) {
      await server.kill('SIGTERM');
    }
  });

  test('to qemu-nbd and back: qemu-img finds no difference', async (t) => {
    const random = testRandom();
    t.diagnostic(`seed ${random.seed}`);
    const bytes = new Uint8Array(size);
    for (let n = 0; n < 40; n++) {
      const length = 512 * random.between(1, 500);
      bytes.set(random.bytes(length), 512 * random.between(0, (size - length) / 512));
    }
    const [source, remote, back, socket] = ['source', 'remote', 'back', 'socket'].map(inDirectory);
    writeFileSync(source, bytes);
    writeFileSync(remote, new Uint8Array(size).fill(9));
    servers.push(await serve(remote, socket));
    const url = `nbd+unix:///?socket=${socket}`;
    assert.match(await vduse('convert', source, url, '--verify'), /48 MiB in .*, compared and equal/);
    await vduse('convert', url, back, '--create', '--verify');
    await compare(source, back);
    assert.ok(statSync(back).blocks * 512 < size / 2, 'zeroes take no space');
    await servers.pop()?.kill('SIGTERM');
    await compare(source, remote);
  });

  test('past the page cache, as qemu-img does it', async () => {
    const [source, target] = ['direct', 'direct-copy'].map(inDirectory);
    makeSparseFile(source, size);
    await runProgram('qemu-io', ['-f', 'raw', '-c', 'write -P 5 1M 3M', '-c', 'write -P 6 40M 64k', source]);
    writeFileSync(target, '');
    await vduse(
      'convert',
      `driver=file,filename=${source},cache.direct=on`,
      `driver=file,filename=${target},cache.direct=on`,
      '--create',
      '--force',
    ).catch((error: Error) => {
      // tmpfs takes no O_DIRECT before Linux 6.6.
      assert.match(error.message, /O_DIRECT/);
      return vduse('convert', source, target, '--create', '--force');
    });
    await compare(source, target);
  });
});
