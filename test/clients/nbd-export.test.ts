/** The storage daemon's export type nbd, by programs that nobody here wrote. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeRandom, runProgram as run } from './programs.js';

const programs = ['qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy'];
const missing = programs.find((program) => spawnSync('which', [program]).status !== 0);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;
const imageMib = 256;

describe('programs on an NBD export', { skip, timeout: 300_000 }, () => {
  let folder: string;
  let image: string;
  let daemon: StorageDaemon;
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${join(folder, 'nbd.sock')}`;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-nbd-clients-'));
    image = makeSparseFile(join(folder, 'disk.img'), imageMib << 20);
    daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    await daemon.addNode({ driver: 'file', nodeName: 'disk', filename: image, discard: 'unmap' });
    await daemon.startNbdServer({ address: { type: 'unix', path: join(folder, 'nbd.sock') } });
    const description = 'a test disk';
    await daemon.addExport({ type: 'nbd', id: 'rw', nodeName: 'disk', writable: true, description });
    await daemon.addExport({ type: 'nbd', id: 'ro', nodeName: 'disk', name: 'again' });
  });

  after(async () => {
    await daemon.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test('nbdinfo lists the exports and what they can do', async () => {
    const listed = JSON.parse(await run('nbdinfo', ['--list', '--json', uri('')])) as {
      exports: Record<string, unknown>[];
    };
    const byName = new Map(listed.exports.map((found) => [found['export-name'], found]));
    assert.deepEqual([...byName.keys()].sort(), ['again', 'disk']);
    const disk = byName.get('disk')!;
    assert.equal(disk['description'], 'a test disk');
    assert.equal(disk['export-size'], imageMib << 20);
    for (const ability of ['can_flush', 'can_fua', 'can_trim', 'can_zero', 'can_multi_conn', 'can_df']) {
      assert.equal(disk[ability], true, ability);
    }
    assert.equal(disk['is_read_only'], false);
    assert.equal(byName.get('again')!['is_read_only'], true);
  });

  test('qemu-img and nbdcopy copy random bytes in and out', async () => {
    const source = join(folder, 'source.img');
    const copy = join(folder, 'copy.img');
    makeRandom(source, imageMib);
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri('disk')]);
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, uri('again')]);
    execFileSync('cmp', [source, image]);
    truncateSync(image, 0);
    truncateSync(image, imageMib << 20);
    await run('nbdcopy', ['--flush', '--connections=4', source, uri('disk')]);
    await run('nbdcopy', ['--connections=4', uri('again'), copy]);
    execFileSync('cmp', [source, copy]);
    rmSync(source);
    rmSync(copy);
  });

  test('qemu-io writes through, discards and zeroes, and the map shows it', async () => {
    const commands = [
      'write -f -P 0x5a 0 4M',
      'write -z -u 1M 1M',
      'discard 2M 1M',
      'read -P 0x5a 0 1M',
      'read -P 0 1M 2M',
      'read -P 0x5a 3M 1M',
      'flush',
    ];
    const args = commands.flatMap((command) => ['-c', command]);
    await run('qemu-io', ['-f', 'raw', ...args, uri('disk')]);
    const map = JSON.parse(await run('nbdinfo', ['--map', '--json', uri('again')])) as {
      offset: number;
      length: number;
      type: number;
    }[];
    const hole = map.find(({ type }) => type === 3);
    assert.deepEqual({ offset: hole?.offset, length: hole?.length }, { offset: 1 << 20, length: 2 << 20 });
    assert.ok(statSync(image).blocks * 512 <= (imageMib - 1) << 20);
  });

  test('qemu-img bench runs at depth 64', async () => {
    await run('qemu-img', ['bench', '-f', 'raw', '-c', '20000', '-d', '64', '-s', '4k', uri('disk')]);
    await run('qemu-img', ['bench', '-f', 'raw', '-w', '-c', '20000', '-d', '64', '-s', '4k', uri('disk')]);
  });
});
