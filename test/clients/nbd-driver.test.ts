/** The block driver nbd against servers that nobody here wrote, and against our own. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockFlag } from '../../src/block/engine.js';
import type { NbdNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { closeFd } from '../../src/native/fd.js';
import { connectUnix } from '../../src/native/unix-socket.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { startBlk } from '../support/blk.js';
import { NbdDisk } from '../support/nbd-disk.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { freePort, ServerProcess } from './nbd-servers.js';

const missing = ['nbdkit', 'qemu-nbd'].find((program) => spawnSync('which', [program]).status !== 0);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;
const mebibyte = 1 << 20;

function canConnect(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true));
    socket.once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}

describe('the block driver nbd', { skip, timeout: 300_000 }, () => {
  let folder: string;
  let count = 0;
  const place = (suffix: string): string => join(folder, `${count++}${suffix}`);

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-nbd-driver-'));
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  function image(mib: number): string {
    return makeSparseFile(place('.img'), mib * mebibyte);
  }

  async function nbdkit(t: TestContext, args: readonly string[], path = place('.sock')): Promise<string> {
    rmSync(path, { force: true });
    const all = ['-f', '-U', path, '-P', `${path}.pid`, ...args];
    const server = await ServerProcess.start('nbdkit', all, () => existsSync(`${path}.pid`));
    t.after(() => server.kill());
    return path;
  }

  async function openDisk(
    t: TestContext,
    options: Omit<NbdNodeOptions, 'driver' | 'nodeName'>,
  ): Promise<NbdDisk> {
    const disk = await NbdDisk.open({ discard: 'unmap', ...options });
    t.after(() => disk.close());
    return disk;
  }

  /** Writes and reads back whatever lengths there are, with everything else a disk can do in between. */
  async function exercise(disk: NbdDisk): Promise<void> {
    const data = randomBytes(4 * mebibyte);
    await disk.writeAndReadBack(data, 128 << 10);
    await disk.write(0, data.subarray(0, 4096), { flags: BlockFlag.FUA });
    await disk.writeZeroes(4096, 65_536);
    await disk.writeZeroes(131_072, 65_536, BlockFlag.MAY_UNMAP);
    await disk.discard(262_144, 65_536);
    const head = await disk.read(0, 262_144);
    assert.ok(head.subarray(0, 4096).equals(data.subarray(0, 4096)));
    assert.ok(head.subarray(4096, 4096 + 65_536).every((byte) => byte === 0));
    assert.ok(head.subarray(131_072, 131_072 + 65_536).every((byte) => byte === 0));
    assert.ok(head.subarray(196_608, 262_144).equals(data.subarray(196_608, 262_144)));
    assert.ok((await disk.read(0, 4 * mebibyte)).subarray(524_288).equals(data.subarray(524_288)));
  }

  test('nbdkit: memory', async (t) => {
    const disk = await openDisk(t, { server: { type: 'unix', path: await nbdkit(t, ['memory', '64M']) } });
    assert.equal(disk.node.size, 64 * mebibyte);
    await exercise(disk);
  });

  test('nbdkit: by a descriptor', async (t) => {
    const fd = connectUnix(await nbdkit(t, ['memory', '64M']));
    t.after(() => closeFd(fd));
    await exercise(await openDisk(t, { server: { type: 'fd', fd } }));
  });

  test('nbdkit: a file, and simple replies', async (t) => {
    const path = image(64);
    const server = { type: 'unix', path: await nbdkit(t, ['--no-sr', 'file', path]) } as const;
    const disk = await openDisk(t, { server });
    await exercise(disk);
    assert.equal(
      readFileSync(path)
        .subarray(4 * mebibyte)
        .every((byte) => byte === 0),
      true,
    );
  });

  test('nbdkit: slow reads come in any order', async (t) => {
    const args = ['--filter=delay', 'memory', '64M', 'rdelay=20ms'];
    await exercise(await openDisk(t, { server: { type: 'unix', path: await nbdkit(t, args) } }));
  });

  test('nbdkit: errors are errors of their requests', async (t) => {
    const trigger = place('.trigger');
    const args = [
      '--filter=error',
      'memory',
      '64M',
      'error=ENOSPC',
      'error-rate=100%',
      `error-file=${trigger}`,
    ];
    const disk = await openDisk(t, { server: { type: 'unix', path: await nbdkit(t, args) } });
    await disk.write(0, randomBytes(4096));
    writeFileSync(trigger, '');
    await assert.rejects(disk.write(0, randomBytes(4096)), { errnoName: 'ENOSPC' });
    await assert.rejects(disk.read(0, 4096), { errnoName: 'ENOSPC' });
    rmSync(trigger);
    await exercise(disk);
  });

  test('nbdkit: block sizes are observed', async (t) => {
    const sizes = ['blocksize-minimum=4096', 'blocksize-preferred=64K', 'blocksize-maximum=128K'];
    const args = ['--filter=blocksize-policy', 'memory', '64M', ...sizes, 'blocksize-error-policy=error'];
    const disk = await openDisk(t, { server: { type: 'unix', path: await nbdkit(t, args) } });
    assert.equal(disk.node.limits.requestAlignment, 4096);
    await exercise(disk);
    await disk.write(0, randomBytes(4 * mebibyte));
  });

  test('qemu-nbd: over TCP, one client at a time', async (t) => {
    const path = image(64);
    const port = await freePort();
    const args = ['-f', 'raw', '-b', '127.0.0.1', '-p', `${port}`, '-t', path];
    const server = await ServerProcess.start('qemu-nbd', args, () => canConnect(port));
    t.after(() => server.kill());
    const disk = await openDisk(t, { server: { type: 'inet', host: 'localhost', port } });
    await exercise(disk);
  });

  test('qemu-nbd: an export that is not there', async (t) => {
    const socket = place('.sock');
    const args = ['-f', 'raw', '-k', socket, '-x', 'right', image(1)];
    const server = await ServerProcess.start('qemu-nbd', args, () => existsSync(socket));
    t.after(() => server.kill());
    await assert.rejects(
      NbdDisk.open({ server: { type: 'unix', path: socket }, exportName: 'wrong', openTimeout: 1 }),
      { code: 'NOT_FOUND', message: /no export 'wrong'.*it says: export 'wrong' not present/ },
    );
    await openDisk(t, { server: { type: 'unix', path: socket }, exportName: 'right' });
  });

  test('our own server', async (t) => {
    const filename = image(64);
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    t.after(() => daemon.close());
    await daemon.addNode({ driver: 'file', nodeName: 'disk', filename, discard: 'unmap' });
    const path = place('.sock');
    await daemon.startNbdServer({ address: { type: 'unix', path } });
    await daemon.addExport({ type: 'nbd', id: 'e', nodeName: 'disk', writable: true });
    const disk = await openDisk(t, { server: { type: 'unix', path }, exportName: 'disk' });
    await exercise(disk);
    await disk.close();
  });

  test('a server killed and started again under load: no error, and nothing is lost', async (t) => {
    const path = image(64);
    const socket = place('.sock');
    const start = async (): Promise<ServerProcess> => {
      rmSync(socket, { force: true });
      rmSync(`${socket}.pid`, { force: true });
      const args = ['-f', '-U', socket, '-P', `${socket}.pid`, 'file', path];
      return ServerProcess.start('nbdkit', args, () => existsSync(`${socket}.pid`));
    };
    let server = await start();
    t.after(() => server.kill());
    const node = await openBlockNode({
      driver: 'nbd',
      nodeName: 'n',
      server: { type: 'unix', path: socket },
      reconnectDelay: 60,
    });
    const pool = new QueueThreadPool({ size: 2 });
    const { client, close } = await startBlk({ node, hosts: pool, device: { queueCount: 2 } });
    const blocks = (64 * mebibyte) / 4096;
    const versions = new Uint32Array(blocks);
    let killing = true;
    let written = 0;
    /** Each writer has blocks of its own: what it wrote last is what must be there. */
    const write = async (writer: number, writers: number): Promise<void> => {
      for (let n = 0; killing; n++) {
        const block = ((n * 7919) % Math.floor(blocks / writers)) * writers + writer;
        const bytes = Buffer.alloc(4096);
        bytes.writeUInt32LE(block, 0);
        bytes.writeUInt32LE(n + 1, 4);
        bytes.fill(bytes.subarray(0, 8));
        const { status } = await client.write(block * 4096, bytes, writer % 2);
        assert.equal(status, BLK_S.OK);
        versions[block] = n + 1;
        written++;
        if (n % 16 === 0) {
          const { status: read, data } = await client.read(block * 4096, 4096, writer % 2);
          assert.equal(read, BLK_S.OK);
          assert.ok(bytes.equals(data));
        }
      }
    };
    const load = Promise.all(Array.from({ length: 32 }, (_, writer) => write(writer, 32)));
    for (let round = 0; round < 6; round++) {
      await sleep(300);
      await server.kill('SIGKILL');
      await sleep(round * 50);
      server = await start();
    }
    const before = written;
    await sleep(500);
    killing = false;
    await load;
    assert.ok(written > before, 'requests go on after the last restart');
    assert.equal((await client.flush()).status, BLK_S.OK);
    await close();
    await pool.close();
    const stored = readFileSync(path);
    for (let block = 0; block < blocks; block++) {
      assert.equal(stored.readUInt32LE(block * 4096 + 4), versions[block], `block ${block}`);
    }
    t.diagnostic(`${written} writes, 6 kills`);
  });
});
