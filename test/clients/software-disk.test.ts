/**
 * Programs that nobody here wrote on a software disk, end to end: NBD, front-end, IOMMU, transport, device,
 * image. Slow and in need of Debian's packages, so not among the unit tests.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type OpenedSoftwareDisk, openSoftwareDisk } from '../../src/daemon/open-software-disk.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeRandom, runProgram as run } from './programs.js';

const mebibyte = 1 << 20;
const imageMib = 1024;

function missingProgram(): string | undefined {
  const programs = ['qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy', 'fio', 'mkfs.ext4', 'e2fsck'];
  return programs.find((program) => spawnSync('which', [program]).status !== 0);
}

const missing = missingProgram();
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;

describe('programs on a software disk', { skip, timeout: 600_000 }, () => {
  let folder: string;
  let image: string;
  let opened: OpenedSoftwareDisk;
  let uri: string;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-clients-'));
    image = makeSparseFile(join(folder, 'disk.img'), imageMib * mebibyte);
    opened = await openSoftwareDisk(image, { name: 'clients', queues: 2 });
    const path = join(folder, 'disk.sock');
    await opened.serveNbd({ address: { type: 'unix', path } });
    uri = `nbd+unix:///?socket=${path}`;
  });

  after(async () => {
    await opened.close();
    rmSync(folder, { recursive: true, force: true });
  });

  test('nbdinfo sees what the virtio device offers', async () => {
    const info = JSON.parse(await run('nbdinfo', ['--json', uri])) as { exports: Record<string, unknown>[] };
    const [found] = info.exports;
    assert.equal(found['export-size'], imageMib * mebibyte);
    for (const ability of ['can_flush', 'can_trim', 'can_zero', 'can_multi_conn']) {
      assert.equal(found[ability], true, ability);
    }
    assert.equal(found['is_read_only'], false);
  });

  test('qemu-img converts 1 GiB of random bytes in and out, and both compare equal', async () => {
    const source = join(folder, 'source.img');
    const copy = join(folder, 'copy.img');
    makeRandom(source, imageMib);
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, uri]);
    await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, uri]);
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', uri, copy]);
    execFileSync('cmp', [source, copy]);
    rmSync(copy);
    rmSync(source);
    assert.equal(opened.disk.domain.bytesCopied, 0, 'payload that lies in shared memory is not bounced');
  });

  test('qemu-io writes through, discards and zeroes', async () => {
    const commands = [
      'write -f -P 0x5a 0 1M',
      'read -P 0x5a 0 1M',
      'write -z -u 64k 64k',
      'read -P 0 64k 64k',
      'discard 256k 256k',
      'flush',
      'read -P 0x5a 512k 512k',
    ];
    const output = await run('qemu-io', [
      '-f',
      'raw',
      ...commands.flatMap((command) => ['-c', command]),
      uri,
    ]);
    assert.doesNotMatch(output, /failed|error/i);
  });

  test('discarding it all gives the blocks back to the file system below', async () => {
    assert.ok(statSync(image).blocks > 1_000_000);
    await run('qemu-io', ['-f', 'raw', '-c', `discard 0 ${imageMib}M`, uri]);
    assert.ok(statSync(image).blocks < 1000, `${statSync(image).blocks} blocks are still allocated`);
  });

  test('a file system goes through it and is whole afterwards', async () => {
    const made = join(folder, 'ext4.img');
    const copy = join(folder, 'copy.img');
    makeSparseFile(made, imageMib * mebibyte);
    execFileSync('mkfs.ext4', ['-q', '-F', '-d', new URL('../../../docs', import.meta.url).pathname, made]);
    await run('nbdcopy', [made, uri]);
    await run('nbdcopy', ['--flush', uri, copy]);
    execFileSync('e2fsck', ['-fn', copy]);
    execFileSync('cmp', [made, copy]);
  });

  test('two clients at once verify what they wrote', async () => {
    const job = (n: number): Promise<string> =>
      run('fio', [
        `--name=client${n}`,
        '--ioengine=nbd',
        `--uri=${uri}`,
        '--rw=randwrite',
        '--bsrange=4k-64k',
        `--offset=${n * 64}M`,
        '--size=64M',
        '--iodepth=16',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--verify_state_save=0',
      ]);
    const outputs = await Promise.all([job(0), job(1)]);
    for (const output of outputs) {
      assert.match(output, /err= 0/);
    }
  });
});
