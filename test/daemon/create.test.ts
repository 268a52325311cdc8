/** blockdev-create: images that are made, and what is left of those that can't be. */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { silentLogger } from '../../src/base/log.js';
import { createImage, type ImageOptions } from '../../src/block/create.js';
import { createOptions, toImageOptions } from '../../src/daemon/options/create-options.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { checkOptions } from '../../src/qmp/qapi.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { openFdCount } from '../support/resources.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const directory = makeTempDir();
let names = 0;
const place = (): string => join(directory, `image-${names++}`);

let disks: DaemonDisks;
let daemon: StorageDaemon;
let jobs = 0;

beforeEach(() => {
  disks = new DaemonDisks();
  daemon = disks.daemon;
});

afterEach(() => disks.close());

/** Runs a job to its end. Returns its error. */
async function create(options: ImageOptions): Promise<string | undefined> {
  const job = await daemon.startCreate(`job-${jobs++}`, options);
  await job.ended;
  assert.equal(job.status, 'concluded');
  return job.error;
}

const context = {
  services: { secret: () => assert.fail('no secret is wanted'), logger: silentLogger },
  signal: new AbortController().signal,
  onProgress: async () => undefined,
};

describe('an image file', () => {
  test('is made in whole sectors, again and again, while nobody has it open', async () => {
    const filename = place();
    const options = { driver: 'file', filename, size: MiB + 1 } as const;
    assert.equal(await create({ ...options, nocow: true }), undefined);
    assert.deepEqual([statSync(filename).size, statSync(filename).blocks], [MiB + 512, 0]);
    assert.equal(await create({ ...options, size: 4096 }), undefined);
    assert.equal(statSync(filename).size, 4096);
    await daemon.addNode({ driver: 'file', nodeName: 'f', filename });
    assert.match((await create(options)) ?? '', /another opener holds its/);
    assert.equal(statSync(filename).size, 4096);
  });

  test('has its space with preallocation, and zeroes where it had data', async () => {
    for (const preallocation of ['falloc', 'full'] as const) {
      const filename = place();
      writeFileSync(filename, Buffer.alloc(MiB, 1));
      const size = 9 * MiB + 512;
      const before = openFdCount();
      assert.equal(await create({ driver: 'file', filename, size, preallocation }), undefined);
      assert.equal(openFdCount(), before);
      assert.ok(statSync(filename).blocks * 512 >= size);
      assert.ok(readFileSync(filename).equals(Buffer.alloc(size)));
    }
    const empty = place();
    assert.equal(
      await create({ driver: 'file', filename: empty, size: 0, preallocation: 'full' }),
      undefined,
    );
    assert.equal(statSync(empty).size, 0);
  });

  test('tells how far it is', async () => {
    const told: number[][] = [];
    const onProgress = async (done: number, total: number): Promise<void> => void told.push([done, total]);
    const options = { driver: 'file', filename: place(), size: 9 * MiB, preallocation: 'full' } as const;
    await createImage(options, { ...context, onProgress });
    assert.deepEqual(
      told.map(([done]) => done),
      [0, 4 * MiB, 8 * MiB, 9 * MiB],
    );
    assert.ok(told.every(([, total]) => total === 9 * MiB));
    const job = await daemon.startCreate('progress', { ...options, filename: place() });
    await job.ended;
    assert.deepEqual([job.current, job.total], [9 * MiB, 9 * MiB]);
  });

  test('that can not be made leaves no file that was not there', async () => {
    const failing = async (filename: string, act: () => void = () => undefined): Promise<void> => {
      const onProgress = async (done: number): Promise<void> => {
        if (done > 0) {
          act();
          throw new Error('enough');
        }
      };
      const options = { driver: 'file', filename, size: 9 * MiB, preallocation: 'full' } as const;
      await assert.rejects(createImage(options, { ...context, onProgress }), { message: 'enough' });
    };
    const before = openFdCount();
    const made = place();
    await failing(made);
    assert.equal(existsSync(made), false);
    const there = place();
    writeFileSync(there, 'x');
    await failing(there);
    assert.equal(existsSync(there), true);
    // Another file that has taken the name is not ours to remove.
    const taken = place();
    await failing(taken, () => {
      renameSync(taken, `${taken}.moved`);
      writeFileSync(taken, 'theirs');
    });
    assert.equal(readFileSync(taken, 'utf8'), 'theirs');
    assert.equal(openFdCount(), before);
  });

  test('that is cancelled is gone', async () => {
    const filename = place();
    const options = { driver: 'file', filename, size: 512 * MiB, preallocation: 'full' } as const;
    const job = await daemon.startCreate('long', options);
    job.pause();
    job.cancel({ force: true });
    await job.ended;
    assert.deepEqual([job.status, job.error], ['concluded', 'Operation canceled']);
    assert.equal(existsSync(filename), false);
  });

  test('needs a folder, and a place where no other thing is', async () => {
    const missing = join(directory, 'no/file');
    assert.match(
      (await create({ driver: 'file', filename: missing, size: MiB })) ?? '',
      /^Could not create '.*': .*no such file or directory/,
    );
    const folder = place();
    mkdirSync(folder);
    assert.match((await create({ driver: 'file', filename: folder, size: MiB })) ?? '', /Could not create/);
    assert.match(
      (await create({ driver: 'file', filename: '/dev/null', size: MiB })) ?? '',
      /it is there, and no file/,
    );
  });
});

describe('the options', () => {
  const parse = (options: unknown): ImageOptions => toImageOptions(checkOptions(createOptions, options));
  const location = { pool: 'rbd', image: 'new', user: 'me', 'key-secret': 'k' };

  test('are those of QEMU', () => {
    assert.deepEqual(
      parse({ driver: 'file', filename: '/f', size: 512, preallocation: 'full', nocow: true }),
      { driver: 'file', filename: '/f', size: 512, preallocation: 'full', nocow: true },
    );
    assert.deepEqual(parse({ driver: 'rbd', location, size: 1024, 'cluster-size': 65_536 }), {
      driver: 'rbd',
      location: { driver: 'rbd', pool: 'rbd', image: 'new', user: 'me', keySecret: 'k' },
      size: 1024,
      clusterSize: 65_536,
    });
  });

  test('refuse encryption, snapshots, and objects of odd sizes', async () => {
    for (const options of [
      { driver: 'rbd', location, size: 1, encrypt: { format: 'luks', 'key-secret': 'k' } },
      { driver: 'rbd', location: { ...location, encrypt: {} }, size: 1 },
    ]) {
      assert.throws(() => parse(options), { code: 'NOT_SUPPORTED', message: /encrypt/ });
    }
    assert.throws(() => parse({ driver: 'file', filename: 'f', size: 1, preallocation: 'metadata' }));
    const refused = (options: object): Promise<void> =>
      assert.rejects(createImage(parse({ driver: 'rbd', location, size: 1, ...options }), context), {
        code: 'INVALID_ARGUMENT',
      });
    await refused({ location: { ...location, snapshot: 's' } });
    for (const size of [2048, 12_288, 64 << 20]) {
      await refused({ 'cluster-size': size });
    }
  });
});
