/** vduse mirror while QEMU's client writes; qemu-img compares what is where afterwards. */
import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { testRandom } from '../support/random.js';
import { makeTempDir } from '../support/temp-dir.js';
import { ServerProcess } from './nbd-servers.js';
import { runProgram } from './programs.js';

const program = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const vduse = (...args: string[]) => runProgram(process.execPath, [program('vduse'), ...args]);
const size = 32 << 20;

test('vduse mirror moves a disk that qemu-io writes to, and loses nothing', async (t) => {
  const random = testRandom();
  t.diagnostic(`seed ${random.seed}`);
  const directory = makeTempDir();
  const [source, target, expected, socket, monitor] = ['a', 'b', 'expected', 'nbd', 'qmp'].map((name) =>
    join(directory, name),
  );
  const model = random.bytes(size);
  writeFileSync(source, model);
  const daemon = await ServerProcess.start(
    process.execPath,
    [
      program('vduse-storage-daemon'),
      `--blockdev=file,node-name=disk,filename=${source},discard=unmap`,
      `--nbd-server=addr.type=unix,addr.path=${socket}`,
      '--export=nbd,id=e,node-name=disk,name=disk,writable=on',
      `--chardev=socket,id=m,path=${monitor},server=on,wait=off`,
      '--monitor=m',
    ],
    () => existsSync(monitor),
  );
  const url = `nbd+unix:///disk?socket=${socket}`;
  const write = async (): Promise<void> => {
    const commands = Array.from({ length: 5 }, () => {
      const length = 512 * random.between(1, 300);
      const offset = 512 * random.between(0, (size - length) / 512);
      const pattern = random.between(1, 255);
      const isZero = random.between(0, 3) === 0;
      model.fill(isZero ? 0 : pattern, offset, offset + length);
      return isZero ? `write -z ${offset} ${length}` : `write -P ${pattern} ${offset} ${length}`;
    });
    await runProgram('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), url]);
  };
  try {
    let isMoving = true;
    const moved = vduse('mirror', '--monitor', monitor, 'disk', target, '--create', '--speed', '16M').finally(
      () => {
        isMoving = false;
      },
    );
    let batches = 0;
    while (isMoving) {
      await write();
      // Slower than the copy, which has no end otherwise.
      await delay(100);
      batches++;
    }
    assert.match(await moved, /what used node 'disk' \(1 export: e\) now uses node 'disk-1' \(.*\/b\); /);
    t.diagnostic(`${batches} batches of writes meanwhile`);
    await write();
    writeFileSync(expected, model);
    const compare = (image: string) =>
      runProgram('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'raw', expected, image]);
    await compare(url);
    await compare(target);
    await assert.rejects(compare(source), /Content mismatch/);
  } finally {
    await daemon.kill('SIGTERM');
  }
});
