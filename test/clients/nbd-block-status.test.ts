/** Holes of other people's NBD servers: told, copied as holes, and told again through our own export. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { allocationExtents, readsAsZeroes } from '../../src/block/allocation.js';
import { openBlockNode } from '../../src/block/open.js';
import { convertNode } from '../../src/daemon/convert.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { NbdDisk } from '../support/nbd-disk.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { until } from '../support/within.js';
import { ServerProcess } from './nbd-servers.js';
import { runProgram } from './programs.js';

const programs = ['nbdkit', 'qemu-nbd', 'qemu-img', 'nbdinfo'];
const missing = programs.find((program) => spawnSync('which', [program]).status !== 0);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;
const MiB = 1 << 20;
const data = { hole: false, zero: false };
const hole = { hole: true, zero: true };

describe('block status of real NBD servers', { skip, timeout: 120_000 }, () => {
  const folder = makeTempDir();
  let count = 0;
  const place = (suffix: string): string => join(folder, `${count++}${suffix}`);

  async function nbdkit(t: TestContext, args: readonly string[]): Promise<{ type: 'unix'; path: string }> {
    const path = place('.sock');
    const all = ['-f', '-U', path, '-P', `${path}.pid`, ...args];
    const server = await ServerProcess.start('nbdkit', all, () => existsSync(`${path}.pid`));
    t.after(() => server.kill());
    return { type: 'unix', path };
  }

  async function qemuNbd(t: TestContext, args: readonly string[]): Promise<{ type: 'unix'; path: string }> {
    const path = place('.sock');
    const all = ['--socket', path, '--persistent', '--shared=8', ...args];
    const server = await ServerProcess.start('qemu-nbd', all, () => existsSync(path));
    t.after(() => server.kill());
    return { type: 'unix', path };
  }

  async function openDisk(t: TestContext, server: { type: 'unix'; path: string }): Promise<NbdDisk> {
    const disk = await NbdDisk.open({ server, discard: 'unmap' });
    t.after(() => disk.close());
    return disk;
  }

  /** 16 MiB: a MiB of data at 4 MiB, and one at 15 MiB. */
  function sparseImage(): string {
    const path = place('.img');
    const fd = openSync(path, 'w');
    writeSync(fd, Buffer.alloc(MiB, 0x5a), 0, MiB, 4 * MiB);
    writeSync(fd, Buffer.alloc(MiB, 0xa5), 0, MiB, 15 * MiB);
    closeSync(fd);
    return path;
  }

  const sparseExtents = [
    { length: 4 * MiB, ...hole },
    { length: MiB, ...data },
    { length: 10 * MiB, ...hole },
    { length: MiB, ...data },
  ];
  const whole = { offset: 0, length: 16 * MiB };

  test('nbdkit file, qemu-nbd raw and qcow2', async (t) => {
    const path = sparseImage();
    const qcow2 = place('.qcow2');
    await runProgram('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', path, qcow2]);
    for (const server of [
      await nbdkit(t, ['-r', 'file', path]),
      await qemuNbd(t, ['--read-only', '--format=raw', path]),
    ]) {
      const disk = await NbdDisk.open({ server, readOnly: true });
      assert.deepEqual(await allocationExtents(disk.client, whole), sparseExtents);
      assert.deepEqual(await allocationExtents(disk.client, { offset: 3 * MiB, length: 2 * MiB }), [
        { length: MiB, ...hole },
        { length: MiB, ...data },
      ]);
      assert.equal(await readsAsZeroes(disk.client), false);
      await disk.close();
    }
    const disk = await openDisk(t, await qemuNbd(t, ['--format=qcow2', qcow2]));
    assert.deepEqual(await allocationExtents(disk.client, whole), sparseExtents);
  });

  test('an empty server reads as zeroes, until it is written', async (t) => {
    const disk = await openDisk(t, await nbdkit(t, ['memory', '64M']));
    assert.equal(await readsAsZeroes(disk.client), true);
    await disk.write(32 * MiB, Buffer.alloc(4096, 1));
    assert.equal(await readsAsZeroes(disk.client), false);
    await disk.discard(32 * MiB, 32768);
    assert.equal(await readsAsZeroes(disk.client), true);
  });

  test('nbdkit eval: extents of all four kinds, with odd lengths', async (t) => {
    const script = 'echo 0 1000 hole; echo 1000 3096 hole,zero; echo 4096 4096 zero; echo 8192 1M';
    const args = [
      'eval',
      'get_size=echo 1M',
      'pread=dd if=/dev/zero count=$3 iflag=count_bytes',
      `extents=${script}`,
    ];
    const disk = await NbdDisk.open({ server: await nbdkit(t, args), readOnly: true });
    t.after(() => disk.close());
    assert.deepEqual(await allocationExtents(disk.client, { offset: 0, length: MiB }), [
      { length: 1024, hole: true, zero: false },
      { length: 3072, ...hole },
      { length: 4096, hole: false, zero: true },
      { length: MiB - 8192, ...data },
    ]);
  });

  test('servers that tell nothing, tell late, or fail are all data', async (t) => {
    for (const args of [
      ['--no-sr', 'memory', '16M'],
      ['--filter=error', 'memory', '16M', 'error-extents=EIO', 'error-extents-rate=100%'],
      ['--filter=noextents', 'memory', '16M'],
    ]) {
      const disk = await openDisk(t, await nbdkit(t, args));
      assert.deepEqual(await allocationExtents(disk.client, whole), [{ length: 16 * MiB, ...data }]);
      assert.equal((await disk.read(0, 4096)).length, 4096);
    }
    const slow = await openDisk(
      t,
      await nbdkit(t, ['--filter=delay', 'memory', '16M', 'delay-extents=100ms']),
    );
    assert.deepEqual(await allocationExtents(slow.client, whole), [{ length: 16 * MiB, ...hole }]);
  });

  test('a conversion from and to NBD copies data and no holes', async (t) => {
    const source = await nbdkit(t, [
      '-r',
      '--filter=stats',
      'file',
      sparseImage(),
      `statsfile=${place('.stats')}`,
    ]);
    const path = makeSparseFile(place('.img'), 16 * MiB);
    const [from, to] = await Promise.all([
      openBlockNode({ driver: 'nbd', nodeName: 'from', server: source, readOnly: true }),
      openBlockNode({
        driver: 'nbd',
        nodeName: 'to',
        server: await qemuNbd(t, ['--format=raw', '--discard=unmap', path]),
      }),
    ]);
    await convertNode({ source: from, target: to });
    await from.close();
    await to.close();
    const copied = readFileSync(path);
    assert.ok(copied.subarray(4 * MiB, 5 * MiB).every((byte) => byte === 0x5a));
    assert.ok(copied.subarray(15 * MiB).every((byte) => byte === 0xa5));
    assert.ok(copied.subarray(0, 4 * MiB).every((byte) => byte === 0));
    assert.ok(statSync(path).blocks * 512 <= 2 * MiB + 65_536, 'holes stay holes');
  });

  test('a mirror copies data and no holes', async (t) => {
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    t.after(() => daemon.close());
    const path = makeSparseFile(place('.img'), 16 * MiB);
    await daemon.addNode({
      driver: 'nbd',
      nodeName: 'from',
      server: await nbdkit(t, ['file', sparseImage()]),
    });
    await daemon.addNode({ driver: 'file', nodeName: 'to', filename: path });
    const job = await daemon.startMirror({ jobId: 'move', device: 'from', target: 'to', sync: 'full' });
    await until('the mirror', () => job.isReady);
    job.complete();
    await job.ended;
    assert.equal(job.error, undefined);
    const copied = readFileSync(path);
    assert.ok(copied.subarray(4 * MiB, 5 * MiB).every((byte) => byte === 0x5a));
    assert.ok(copied.subarray(15 * MiB).every((byte) => byte === 0xa5));
    assert.ok(statSync(path).blocks * 512 <= 2 * MiB + 65_536, 'holes stay holes');
  });

  test('a terabyte of holes takes no time', async (t) => {
    const disk = await openDisk(t, await nbdkit(t, ['memory', '1T']));
    assert.equal(await readsAsZeroes(disk.client), true);
    const extents = await allocationExtents(disk.client, { offset: 512 * 2 ** 30, length: 2 ** 39 });
    assert.deepEqual(extents, [{ length: 2 ** 30, ...hole }]);
  });

  test('our export of such a node tells the same', async (t) => {
    const server = await nbdkit(t, ['file', sparseImage()]);
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    t.after(() => daemon.close());
    await daemon.addNode({ driver: 'nbd', nodeName: 'remote', server });
    const path = place('.sock');
    await daemon.startNbdServer({ address: { type: 'unix', path } });
    await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'remote', writable: true });
    const uri = `nbd+unix:///remote?socket=${path}`;
    const map = JSON.parse(await runProgram('nbdinfo', ['--map', '--json', uri])) as Record<
      string,
      unknown
    >[];
    assert.deepEqual(
      map.map(({ offset, length, type }) => [offset, length, type]),
      [
        [0, 4 * MiB, 3],
        [4 * MiB, MiB, 0],
        [5 * MiB, 10 * MiB, 3],
        [15 * MiB, MiB, 0],
      ],
    );
    const qemuMap = JSON.parse(await runProgram('qemu-img', ['map', '--output=json', '-f', 'raw', uri])) as {
      start: number;
      data: boolean;
      zero: boolean;
    }[];
    assert.deepEqual(
      qemuMap.map(({ start, data: isData, zero }) => [start / MiB, isData, zero]),
      [
        [0, false, true],
        [4, true, false],
        [5, false, true],
        [15, true, false],
      ],
    );
  });
});
