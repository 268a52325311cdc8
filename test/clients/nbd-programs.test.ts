/** Programs that exist: libnbd's, QEMU's and fio's, against a disk in this process. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { promisify } from 'node:util';
import { MemoryExport, type MemoryExportOptions } from '../nbd/memory-export.js';
import { startServer } from '../nbd/nbd-test-server.js';
import { testRandom } from '../support/random.js';
import { makeTempDir } from '../support/temp-dir.js';

const RUN_MS_MAX = 60_000;
const size = 16 << 20;
const execute = promisify(execFile);

async function run(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await execute(program, args, { timeout: RUN_MS_MAX, maxBuffer: 64 << 20 });
  return stdout;
}

/** A reason to skip: a program is missing. Under CI nothing is skipped: there the test fails instead. */
function needs(...programs: string[]): { skip: string | false } {
  const missing = programs.filter((program) => !isInPath(program));
  const skips = missing.length > 0 && process.env['CI'] !== 'true';
  return { skip: skips && `${missing.join(', ')} not found (Debian: libnbd-bin, qemu-utils, fio)` };
}

function isInPath(program: string): boolean {
  return (process.env['PATH'] ?? '').split(delimiter).some((dir) => {
    try {
      accessSync(join(dir, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Data with holes in it, as disk images are. */
function image(t: TestContext): Buffer {
  const random = testRandom();
  t.diagnostic(`seed ${random.seed}`);
  const bytes = Buffer.alloc(size);
  for (let n = 0; n < 40; n++) {
    const at = random.between(0, size - 70_000);
    bytes.fill(random.bytes(512), at, at + random.between(1, 70_000));
  }
  return bytes;
}

const kinds: [string, Partial<MemoryExportOptions>][] = [
  ['at once', {}],
  ['with promises and holes', { isAsync: true, holeBytes: 65536 }],
  ['with a minimum block size, without FUA', { blockSizes: { minimum: 512 }, fua: false, isAsync: true }],
];

describe('NBD programs', () => {
  const dir = makeTempDir();

  test('nbdinfo lists exports and tells what they can do', needs('nbdinfo'), async (t) => {
    const target = new MemoryExport({
      size,
      blockSizes: { minimum: 512, preferred: 65536, maximum: 4 << 20 },
      holeBytes: 1 << 20,
    });
    target.writeZeroes?.(1 << 20, 1 << 20, { fua: false, mayUnmap: false, fastZero: false });
    const { server, uri } = await startServer(t, dir, { target });
    const name = 'a name / with "anything" & 語';
    server.addExport({ name, target, description: 'what people read', readOnly: true });
    const list = JSON.parse(await run('nbdinfo', '--json', '--list', uri()));
    assert.equal(list.protocol, 'newstyle-fixed');
    assert.equal(list.structured, true);
    assert.deepEqual(
      list.exports.map((one: Record<string, unknown>) => [
        one['export-name'],
        one['description'],
        one['is_read_only'],
      ]),
      [
        ['', undefined, false],
        [name, 'what people read', true],
      ],
    );
    const [info] = list.exports;
    assert.deepEqual(
      [
        info['export-size'],
        info['block_size_minimum'],
        info['block_size_preferred'],
        info['block_size_maximum'],
      ],
      [size, 512, 65536, 4 << 20],
    );
    assert.deepEqual(info.contexts, ['base:allocation']);
    const abilities = ['cache', 'df', 'fast_zero', 'flush', 'fua', 'multi_conn', 'trim', 'zero'];
    assert.ok(abilities.every((ability) => info[`can_${ability}`] === true));
    const map = JSON.parse(await run('nbdinfo', '--json', '--map', uri()));
    assert.deepEqual(
      map.map((extent: Record<string, unknown>) => [extent['offset'], extent['length'], extent['type']]),
      [
        [0, 1 << 20, 3],
        [1 << 20, 1 << 20, 0],
        [2 << 20, 14 << 20, 3],
      ],
    );
    assert.equal((await run('nbdinfo', '--size', uri(name))).trim(), String(size));
  });

  for (const [kind, options] of kinds) {
    test(`nbdcopy in and out, ${kind}`, needs('nbdcopy'), async (t) => {
      const target = new MemoryExport({ size, ...options });
      const { uri } = await startServer(t, dir, { target });
      const bytes = image(t);
      const [source, copy] = [join(dir, 'in.raw'), join(dir, 'out.raw')];
      writeFileSync(source, bytes);
      await run('nbdcopy', '--flush', source, uri());
      assert.ok(bytes.equals(target.bytes));
      assert.ok(target.count('flush') > 0);
      await run('nbdcopy', uri(), copy);
      assert.ok(bytes.equals(readFileSync(copy)));
      target.assertBalanced();
    });

    test(`qemu-img convert in, compare and out, ${kind}`, needs('qemu-img'), async (t) => {
      const target = new MemoryExport({ size, ...options });
      const { uri } = await startServer(t, dir, { target });
      const bytes = image(t);
      const [source, copy] = [join(dir, 'in.raw'), join(dir, 'out.raw')];
      writeFileSync(source, bytes);
      await run('qemu-img', 'convert', '-n', '-f', 'raw', '-O', 'raw', source, uri());
      assert.ok(bytes.equals(target.bytes));
      await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, uri());
      await run('qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri(), copy);
      assert.ok(bytes.equals(readFileSync(copy)));
      target.bytes[target.bytes.findIndex((byte) => byte !== 0)] ^= 1;
      await assert.rejects(run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', source, uri()), { code: 1 });
      target.assertBalanced();
    });

    test(`qemu-io: FUA, discard and zeroes, ${kind}`, needs('qemu-io'), async (t) => {
      const target = new MemoryExport({ size, ...options });
      const { uri } = await startServer(t, dir, { target });
      const commands = [
        'write -P 0x11 0 1M',
        'write -f -P 0x22 64k 4k',
        'discard 128k 64k',
        'write -z 256k 64k',
        'write -z -u 320k 64k',
        'write -z -f 384k 512',
        'aio_write -P 0x33 512k 64k',
        'aio_read -P 0x11 0 64k',
        'aio_flush',
        'flush',
        'read -P 0x22 64k 4k',
        'read -P 0 256k 128k',
        'read -P 0x33 512k 64k',
      ];
      const output = await run('qemu-io', '-f', 'raw', ...commands.flatMap((one) => ['-c', one]), uri());
      assert.doesNotMatch(output, /fail|error/i);
      const zeroes = target.calls.filter(({ call }) => call === 'writeZeroes');
      assert.deepEqual(
        zeroes.map(({ offset, options: how }) => [
          offset >> 10,
          how !== undefined && 'mayUnmap' in how && how.mayUnmap,
        ]),
        [
          [256, false],
          [320, true],
          [384, false],
        ],
      );
      assert.ok(target.count('trim') > 0 && target.count('flush') > 0);
      const fua = target.calls.find((one) => one.call === 'prepareWrite' && one.length === 4096);
      assert.equal(fua?.options?.fua, target.fua);
      target.assertBalanced();
    });
  }

  test('qemu-io on a read-only export cannot write', needs('qemu-io'), async (t) => {
    const { server, uri } = await startServer(t, dir);
    server.addExport({ name: 'ro', target: new MemoryExport({ size }), readOnly: true });
    assert.match(await run('qemu-io', '-r', '-f', 'raw', '-c', 'read -P 0 0 4k', uri('ro')), /4 KiB/);
    await assert.rejects(run('qemu-io', '-f', 'raw', '-c', 'write 0 4k', uri('ro')));
  });

  test('fio verifies what it wrote, over two connections', needs('fio'), async (t) => {
    const target = new MemoryExport({ size, isAsync: true });
    const { uri } = await startServer(t, dir, { target });
    const output = await run(
      'fio',
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${uri()}`,
      '--thread',
      '--numjobs=2',
      '--size=8m',
      '--offset_increment=8m',
      '--rw=randwrite',
      '--bsrange=512-128k',
      '--blockalign=512',
      '--iodepth=32',
      '--verify=crc32c',
      '--verify_state_save=0',
      '--verify_fatal=1',
      '--do_verify=1',
      '--output-format=json',
    );
    const { jobs } = JSON.parse(output.slice(output.indexOf('{')));
    assert.equal(jobs.length, 2);
    for (const job of jobs) {
      assert.equal(job.error, 0);
      assert.ok(job.read.total_ios > 0 && job.write.total_ios > 0);
    }
    target.assertBalanced();
  });
});
