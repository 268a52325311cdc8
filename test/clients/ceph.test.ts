/**
 * The rbd block driver on a real Ceph cluster, which the tests start: through the whole device (a software disk and
 * its NBD server), beside Ceph's own `rbd`, and with owners, monitors and OSDs that die.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { VduseError } from '../../src/base/errors.js';
import { createImage } from '../../src/block/create.js';
import type { RbdImageOptions } from '../../src/block/drivers/rbd/rbd-create.js';
import type { BlockNode, RbdNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { type OpenedSoftwareDisk, openSoftwareDisk } from '../../src/daemon/open-software-disk.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { CephCluster, missingCephProgram } from '../support/ceph-cluster.js';
import { recordingLogger } from '../support/recording-logger.js';
import { isVduseError } from '../support/vduse-error.js';
import { runProgram as run, runProgram } from './programs.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const mebibyte = 1 << 20;
const missing = missingCephProgram();
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;

async function until(what: string, timeoutMs: number, condition: () => boolean): Promise<void> {
  for (const endMs = Date.now() + timeoutMs; !condition(); await sleep(20)) {
    assert.ok(Date.now() < endMs, `${what} did not come`);
  }
}

/** Another process that has the image open for writing. */
async function startOwner(options: RbdNodeOptions): Promise<ChildProcess> {
  const script = `
    import { openBlockNode } from ${JSON.stringify(new URL('../../src/block/open.js', import.meta.url).href)};
    await openBlockNode(${JSON.stringify(options)});
    console.log('open');
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise<void>((opened, failed) => {
    child.stdout.once('data', () => opened());
    child.once('exit', () => failed(new Error('the owner ended')));
  });
  return child;
}

describe('rbd on a cluster with one OSD', { skip, timeout: 300_000 }, () => {
  let cluster: CephCluster;
  let folder: string;
  let images = 0;
  const { logger, lines } = recordingLogger();

  before(async () => {
    cluster = await CephCluster.start();
    folder = mkdtempSync(join(tmpdir(), 'vduse-clients-'));
  });

  after(async () => {
    await cluster?.stop();
    rmSync(folder, { recursive: true, force: true });
  });

  const services = { secret: (): Uint8Array => Buffer.from('not a key'), logger };

  async function makeImage(mib: number, ...args: string[]): Promise<RbdNodeOptions> {
    const image = `image-${images++}`;
    await cluster.rbd('create', '--size', `${mib}M`, ...args, image);
    return {
      driver: 'rbd',
      nodeName: image,
      pool: cluster.pool,
      image,
      conf: cluster.conf,
      discard: 'unmap',
    };
  }

  async function openDisk(options: RbdNodeOptions, queues = 1): Promise<OpenedSoftwareDisk> {
    return openSoftwareDisk(options, { queues, logger });
  }

  async function serve(disk: OpenedSoftwareDisk): Promise<string> {
    const path = join(folder, `${disk.name}.sock`);
    await disk.serveNbd({ address: { type: 'unix', path } });
    return `nbd+unix:///?socket=${path}`;
  }

  test('blockdev-create makes an image, and says why it does not', async () => {
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {}, logger });
    const location = { driver: 'rbd', pool: cluster.pool, conf: cluster.conf, image: 'created' } as const;
    let jobs = 0;
    const create = async (options: Omit<RbdImageOptions, 'driver'>): Promise<string | undefined> => {
      const job = await daemon.startCreate(`create-${jobs++}`, { driver: 'rbd', ...options });
      await job.ended;
      return job.error;
    };
    try {
      assert.equal(await create({ location, size: 8 * mebibyte + 1, clusterSize: mebibyte }), undefined);
      const info = JSON.parse(await cluster.rbd('info', '--format', 'json', 'created')) as Record<
        string,
        unknown
      >;
      assert.deepEqual([info['size'], info['order'], info['format']], [8 * mebibyte + 512, 20, 2]);
      assert.ok((info['features'] as string[]).includes('exclusive-lock'));
      await daemon.addNode({ ...location, nodeName: 'created' });
      assert.equal(daemon.nodes[0].limits.optimalIoSize, mebibyte);
      assert.equal(
        await create({ location, size: mebibyte }),
        `cannot create '${cluster.pool}/created': there is an image of this name`,
      );
      assert.match(
        (await create({ location: { ...location, pool: 'none' }, size: mebibyte })) ?? '',
        /there is no pool 'none'/,
      );
      assert.equal(await create({ location: { ...location, image: 'plain' }, size: mebibyte }), undefined);
      const plain = JSON.parse(await cluster.rbd('info', '--format', 'json', 'plain')) as Record<
        string,
        unknown
      >;
      assert.equal(plain['order'], 22);
    } finally {
      await daemon.close();
    }
  });

  test('what is written through the device is what rbd exports, and back', async () => {
    const options = await makeImage(64);
    const source = join(folder, 'source.img');
    const content = randomFillSync(Buffer.alloc(64 * mebibyte));
    writeFileSync(source, content);
    const disk = await openDisk(options);
    const uri = await serve(disk);
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri], folder);
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, uri], folder);
    await disk.close();
    const exported = join(folder, 'exported.img');
    await cluster.rbd('export', '--no-progress', options.image, exported);
    assert.ok(content.equals(readFileSync(exported)), 'rbd sees other bytes');
    rmSync(source);
    rmSync(exported);
  });

  test('vduse convert fills an image and fetches it, and vduse bench measures it', async () => {
    const vduse = (...args: string[]) => runProgram(process.execPath, [program, ...args]);
    const { image, pool, conf } = await makeImage(32);
    const [source, back, exported] = ['convert.img', 'back.img', 'convert-exported.img'].map((name) =>
      join(folder, name),
    );
    const content = Buffer.alloc(32 * mebibyte);
    randomFillSync(content, 3 * mebibyte + 512, 6 * mebibyte);
    writeFileSync(source, content);
    const url = `rbd:${pool}/${image}:conf=${conf}`;
    assert.match(await vduse('convert', source, url, '--verify'), /32 MiB in .*, compared and equal/);
    await cluster.rbd('export', '--no-progress', image, exported);
    assert.ok(content.equals(readFileSync(exported)), 'rbd sees other bytes');
    assert.match(await cluster.rbd('du', image), /\b12 MiB\b/, 'zeroes take no space: 3 objects of 4 MiB');
    await vduse('convert', `driver=rbd,pool=${pool},image=${image},conf=${conf}`, back, '--create');
    await runProgram('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', exported, back]);
    const figures = JSON.parse(await vduse('bench', url, '--runtime', '0.5', '--iodepth', '4', '--json'));
    assert.ok(figures.read.iops > 0 && figures.errors === 0, JSON.stringify(figures));
    await assert.rejects(
      vduse('convert', source, `rbd:${pool}/none:conf=${conf}`),
      /ended with 1: vduse: .*there is no such image/,
    );
  });

  for (const queues of [1, 2]) {
    test(`fio verifies what it wrote, on ${queues} queue${queues === 1 ? '' : 's'}`, async () => {
      const disk = await openDisk(await makeImage(128), queues);
      const uri = await serve(disk);
      const jobs = Array.from({ length: queues }, (_, n) =>
        run(
          'fio',
          [
            `--name=job${n}`,
            '--ioengine=nbd',
            `--uri=${uri}`,
            '--rw=randwrite',
            '--bsrange=512-128k',
            '--blockalign=512',
            `--offset=${n * 32}M`,
            '--size=32M',
            '--iodepth=16',
            '--verify=crc32c',
            '--verify_fatal=1',
            '--verify_state_save=0',
          ],
          folder,
        ),
      );
      for (const output of await Promise.all(jobs)) {
        assert.match(output, /err= 0/);
      }
      await disk.close();
    });
  }

  test('flush, discard, write-zeroes and small discards do what they say', async () => {
    const options = await makeImage(16);
    const { disk, close } = await openDisk(options);
    const pattern = Buffer.alloc(256 << 10, 0x5a);
    await disk.write(0, pattern);
    await disk.flush();
    await disk.discard(4096, 4096);
    await disk.writeZeroes(65_536, 4096, { unmap: true });
    const read = Buffer.alloc(pattern.length);
    await disk.read(0, read);
    pattern.fill(0, 4096, 8192);
    pattern.fill(0, 65_536, 69_632);
    assert.ok(read.equals(pattern), 'a discard of 4 KiB was dropped, or touched too much');
    await disk.discard(0, 16 * mebibyte);
    await close();
    assert.match(await cluster.rbd('du', options.image), /\b0 B\b/);
  });

  test('a request beyond the end is an error, not a write that was cut off', async () => {
    const opened = await openDisk(await makeImage(16));
    const { disk } = opened;
    await assert.rejects(disk.write(16 * mebibyte - 512, Buffer.alloc(1024)));
    await assert.rejects(disk.read(16 * mebibyte, Buffer.alloc(512)));
    await opened.close();
  });

  test('resizes: ours, and one made elsewhere', async () => {
    const options = await makeImage(16);
    const opened = await openDisk(options);
    assert.equal(opened.disk.size, 16 * mebibyte);
    await opened.resize(32 * mebibyte);
    assert.equal(opened.disk.size, 32 * mebibyte);
    assert.match(await cluster.rbd('info', options.image), /size 32 MiB/);
    await cluster.rbd('resize', '--no-progress', '--size', '64M', options.image);
    await until('the new size', 20_000, () => opened.disk.size === 64 * mebibyte);
    await opened.disk.write(48 * mebibyte, Buffer.alloc(4096, 1));
    await cluster.rbd('resize', '--no-progress', '--allow-shrink', '--size', '8M', options.image);
    await until('the new size', 20_000, () => opened.disk.size === 8 * mebibyte);
    await assert.rejects(opened.disk.write(12 * mebibyte, Buffer.alloc(4096, 1)));
    await opened.close();
  });

  test('snapshots are read only, and stay as they were', async () => {
    const options = await makeImage(8);
    const { disk, close } = await openDisk(options);
    await disk.write(0, Buffer.alloc(4096, 1));
    await disk.flush();
    await cluster.rbd('snap', 'create', '--no-progress', `${options.image}@before`);
    await disk.write(0, Buffer.alloc(4096, 2));
    await close();
    const snapshot = { ...options, snapshot: 'before' };
    await assert.rejects(openBlockNode(snapshot), isVduseError('IMAGE_READ_ONLY', /snapshots are read-only/));
    const opened = await openDisk({ ...snapshot, autoReadOnly: true });
    const read = Buffer.alloc(4096);
    await opened.disk.read(0, read);
    assert.ok(read.equals(Buffer.alloc(4096, 1)));
    await assert.rejects(opened.disk.write(0, read));
    await opened.close();
  });

  test('a namespace is another set of images', async () => {
    await cluster.rbd('namespace', 'create', `${cluster.pool}/tenant`);
    await cluster.rbd('create', '--size', '8M', `${cluster.pool}/tenant/own`);
    const options = { ...(await makeImage(8)), namespace: 'tenant', image: 'own' };
    const node = await openBlockNode(options);
    assert.equal(node.filename, `rbd:${cluster.pool}/tenant/own`);
    await node.close();
  });

  test('a living owner keeps the lock; a dead one loses it within seconds, and cannot write any more', async () => {
    const options = await makeImage(8);
    const owner = await startOwner(options);
    await assert.rejects(
      openBlockNode(options, undefined, services),
      isVduseError('IMAGE_LOCKED', /holds its exclusive lock and is alive/),
    );
    const reader = await openBlockNode({ ...options, readOnly: true }, undefined, services);
    await reader.close();
    const ended = new Promise((resolve) => owner.once('exit', resolve));
    owner.kill('SIGKILL');
    await ended;
    const start = Date.now();
    const { disk, close } = await openDisk(options);
    await disk.write(0, Buffer.alloc(4096, 1));
    const ms = Date.now() - start;
    await close();
    assert.ok(ms < 15_000, `it took ${ms} ms; Ceph by itself needs 28 s`);
    assert.ok(lines.some((line) => line.includes('does not answer: it is shut out of the cluster')));
    assert.match(await cluster.ceph('osd', 'blacklist', 'ls'), /127\.0\.0\.1/);
  });

  test('nodes of one configuration share a connection, which ends with the last', async () => {
    const threads = (): number =>
      Number(/^Threads:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
    const options = await Promise.all([makeImage(8), makeImage(8), makeImage(8)]);
    const before = threads();
    const first = await openBlockNode(options[0]);
    const one = threads();
    const others = await Promise.all(options.slice(1).map((each) => openBlockNode(each)));
    assert.ok(threads() - one < one - before, `${before}, ${one}, then ${threads()} threads`);
    await Promise.all([first, ...others].map((node) => node.close()));
    await until('the end of the threads', 10_000, () => threads() <= before + 4);
  });

  test('monitors and key may come as options; keys are in no message', async () => {
    const options = await makeImage(8);
    const key = await cluster.key('client.admin');
    const { host, port } = cluster.monitor;
    const { conf: _, ...withoutConf } = {
      ...options,
      servers: [{ host, port: `${port}` }],
      keySecret: 'key',
      mountTimeout: 5,
    };
    const secret = (text: string) => ({ logger, secret: () => Buffer.from(text, 'base64') });
    const node = await openBlockNode(withoutConf, undefined, secret(key));
    await node.close();
    const disk = await openSoftwareDisk(withoutConf, { secrets: { key: Buffer.from(key, 'base64') } });
    await disk.close();
    await assert.rejects(
      openSoftwareDisk(withoutConf),
      isVduseError('NOT_FOUND', /there is no secret 'key'/),
    );
    // A key like any other, but of nobody.
    const other = (await run('ceph-authtool', ['--gen-print-key'], folder)).trim();
    for (const wrong of [other, Buffer.from('no key at all').toString('base64')]) {
      const withConf = { ...options, keySecret: 'key', mountTimeout: 5 };
      await assert.rejects(openBlockNode(withConf, undefined, secret(wrong)), (error) => {
        assert(error instanceof VduseError);
        assert.match(error.code, /^(PERMISSION_DENIED|INVALID_ARGUMENT)$/);
        const told = `${error.message} ${error.hint} ${String(error.cause)} ${lines.join()}`;
        assert.ok(!told.includes(wrong) && !told.includes(key), told);
        return true;
      });
    }
  });

  test('what is not there is told', async () => {
    const options = await makeImage(8);
    const open = (change: Partial<RbdNodeOptions>): Promise<BlockNode> =>
      openBlockNode({ ...options, ...change }, undefined, services);
    await assert.rejects(
      open({ image: 'none' }),
      isVduseError('NOT_FOUND', /'rbd\/none': there is no such image/),
    );
    await assert.rejects(open({ pool: 'none' }), isVduseError('NOT_FOUND', /there is no pool 'none'/));
    await assert.rejects(open({ conf: '/none' }), isVduseError('NOT_FOUND', /configuration '\/none'/));
    await assert.rejects(
      open({ user: 'nobody' }),
      isVduseError('PERMISSION_DENIED', /refuses client.nobody/),
    );
    await assert.rejects(
      open({ snapshot: 'none', readOnly: true }),
      isVduseError('NOT_FOUND', /no such image or snapshot/),
    );
    const start = Date.now();
    await assert.rejects(
      open({ servers: [{ host: '127.0.0.1', port: '1' }], mountTimeout: 1 }),
      isVduseError('TIMEOUT', /no monitor answered within 1 s/),
    );
    assert.ok(Date.now() - start < 15_000);
  });

  test('more requests than librados lets be in flight by default make no queue thread wait', async (t) => {
    const options = { ...(await makeImage(8)), cache: { direct: true } };
    const opened = await openSoftwareDisk(options, { queues: 8, queueSize: 1024, logger });
    t.after(() => opened.close());
    const { disk } = opened;
    await disk.write(0, Buffer.alloc(4096, 7));
    const buffers = Array.from({ length: 1600 }, () => Buffer.alloc(512));
    const reads: Promise<void>[] = [];
    process.kill(cluster.osdPid(0), 'SIGSTOP');
    try {
      reads.push(...buffers.map((buffer) => disk.read(0, buffer)));
      // Answered by the queue threads themselves, each in its turn.
      const asked = Promise.all(Array.from({ length: 8 }, () => disk.getId()));
      const answered = await Promise.race([asked.then(() => true), sleep(10_000, false, { ref: false })]);
      assert.ok(answered, 'a queue thread waits');
    } finally {
      process.kill(cluster.osdPid(0), 'SIGCONT');
    }
    await Promise.all(reads);
    assert.ok(buffers.every((buffer) => buffer.equals(Buffer.alloc(512, 7))));
  });

  test('an OSD that stands still: opening gives up, reads with a time limit fail, and all goes on after it', async (t) => {
    const options = await makeImage(8);
    const limited = await openDisk({ ...options, osdTimeout: 1 });
    t.after(() => limited.close());
    await limited.disk.write(0, Buffer.alloc(4096, 3));
    const other = await makeImage(8);
    const location = { driver: 'rbd', pool: cluster.pool, conf: cluster.conf, image: 'late' } as const;
    const late = { driver: 'rbd', location: { ...location, mountTimeout: 1 }, size: mebibyte } as const;
    const context = { services, signal: new AbortController().signal, onProgress: async () => undefined };
    process.kill(cluster.osdPid(0), 'SIGSTOP');
    try {
      await assert.rejects(
        openBlockNode({ ...other, mountTimeout: 1 }),
        isVduseError('TIMEOUT', /no OSD answered within 1 s/),
      );
      await assert.rejects(
        createImage(late, context),
        isVduseError('TIMEOUT', /cannot create '.*\/late': no OSD answered within 1 s/),
      );
      await assert.rejects(limited.disk.read(4096, Buffer.alloc(4096)));
    } finally {
      process.kill(cluster.osdPid(0), 'SIGCONT');
    }
    const read = Buffer.alloc(4096);
    // The monitor may have taken the OSD for dead: until it is up again, reads run into their time limit.
    let back = false;
    for (const endMs = Date.now() + 60_000; !back && Date.now() < endMs; ) {
      back = await limited.disk.read(0, read).then(
        () => true,
        () => false,
      );
    }
    assert.ok(back && read.equals(Buffer.alloc(4096, 3)));
    await limited.close();
    await (await openBlockNode(other)).close();
    // The image that came too late goes again, and its name is free.
    let error: unknown = 'none yet';
    for (const endMs = Date.now() + 30_000; error !== undefined && Date.now() < endMs; await sleep(100)) {
      error = await createImage({ ...late, location }, context).catch((failure: unknown) => failure);
    }
    assert.equal(error, undefined);
    await sleep(1000);
    assert.match(await cluster.rbd('ls'), /^late$/m);
  });
});

describe('rbd on a cluster with three OSDs', { skip, timeout: 300_000 }, () => {
  test('one OSD is killed while fio writes and verifies: no error, nothing lost', async () => {
    const cluster = await CephCluster.start({ osds: 3 });
    const folder = mkdtempSync(join(tmpdir(), 'vduse-clients-'));
    try {
      await cluster.rbd('create', '--size', '256M', 'disk');
      const disk = await openSoftwareDisk({
        driver: 'rbd',
        nodeName: 'disk',
        pool: cluster.pool,
        image: 'disk',
        conf: cluster.conf,
        cache: { direct: true },
      });
      const path = join(folder, 'disk.sock');
      await disk.serveNbd({ address: { type: 'unix', path } });
      const args = ['--ioengine=nbd', `--uri=nbd+unix:///?socket=${path}`, '--iodepth=16', '--size=256M'];
      const verify = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--randseed=7'];
      const load = ['--name=load', '--rw=randwrite', '--bs=16k', ...verify];
      const writing = run('fio', [...load, ...args, '--do_verify=0'], folder);
      await until('the load', 30_000, () => disk.statistics.writes > 500);
      process.kill(cluster.osdPid(1), 'SIGKILL');
      const atKill = disk.statistics.writes;
      assert.match(await writing, /err= 0/);
      assert.ok(disk.statistics.writes > atKill + 100, 'the OSD was killed when the load was over');
      assert.match(await run('fio', [...load, ...args, '--verify_only'], folder), /err= 0/);
      assert.match(await cluster.ceph('osd', 'stat'), /3 osds: 2 up/);
      await disk.close();
    } finally {
      await cluster.stop();
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
