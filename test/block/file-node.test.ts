/** Opening images: what is refused, with which hint, and what is said of those that are taken. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { VduseError } from '../../src/base/errors.js';
import type { BlockNode, BlockNodeOptions, FileNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { openFdCount } from '../support/resources.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();
chmodSync(directory, 0o755);

function image(name: string, size: number): string {
  return makeSparseFile(join(directory, name), size);
}

function open(filename: string, options: Partial<FileNodeOptions> = {}): Promise<BlockNode> {
  return openBlockNode({ driver: 'file', nodeName: 'n', filename, ...options });
}

/** Nothing stays open when opening fails. */
async function refused(
  options: BlockNodeOptions,
  expected: { code: string; message: RegExp; hint?: RegExp },
): Promise<void> {
  const before = openFdCount();
  await assert.rejects(openBlockNode(options), (error: unknown) => {
    assert.ok(error instanceof VduseError, String(error));
    assert.equal(error.code, expected.code);
    assert.match(error.message, expected.message);
    if (expected.hint === undefined) {
      assert.equal(error.hint, undefined);
    } else {
      assert.match(error.hint ?? '', expected.hint);
    }
    return true;
  });
  assert.equal(openFdCount(), before);
}

/** As somebody whom permissions concern: they do not concern root. */
async function asNobody(run: () => Promise<void>): Promise<void> {
  if (process.geteuid?.() !== 0) {
    await run();
    return;
  }
  process.setegid?.(65534);
  process.seteuid?.(65534);
  try {
    await run();
  } finally {
    process.seteuid?.(0);
    process.setegid?.(0);
  }
}

const file = (filename: string, more: Partial<FileNodeOptions> = {}): FileNodeOptions => ({
  driver: 'file',
  nodeName: 'n',
  filename,
  ...more,
});

describe('images that are refused', () => {
  test('one that is not there', () =>
    refused(file(join(directory, 'missing.img')), {
      code: 'NOT_FOUND',
      message: /^cannot open '.*missing\.img': .*\(ENOENT\)$/,
      hint: /vduse create .*missing\.img 10G/,
    }));

  test('a directory, for writing and for reading', async () => {
    const path = join(directory, 'directory');
    mkdirSync(path, { recursive: true });
    for (const readOnly of [false, true]) {
      await refused(file(path, { readOnly }), {
        code: 'IMAGE_INVALID',
        message: /it is a directory, not an image$/,
      });
    }
  });

  test('one that may not be opened', async () => {
    const path = image('secret.img', 512);
    chmodSync(path, 0);
    await asNobody(() =>
      refused(file(path), {
        code: 'PERMISSION_DENIED',
        message: /^cannot open '.*secret\.img': .*\(EACCES\)$/,
        hint: /user who owns the image.*--read-only/,
      }),
    );
  });

  test('one that may only be read is opened read-only where that is allowed', async () => {
    const path = image('readable.img', 512);
    chmodSync(path, 0o444);
    await asNobody(async () => {
      await refused(file(path), { code: 'PERMISSION_DENIED', message: /EACCES/, hint: /./ });
      const node = await open(path, { autoReadOnly: true });
      assert.equal(node.readOnly, true);
      assert.deepEqual([node.features.discard, node.features.writeZeroes], [false, false]);
      await assert.rejects(node.resize(1024), { code: 'IMAGE_READ_ONLY' });
      await node.close();
    });
  });

  test('a size that is no multiple of 512, with the size that is', () =>
    refused(file(image('odd.img', 1000)), {
      code: 'IMAGE_INVALID',
      message: /its size of 1000 bytes is not a multiple of 512$/,
      hint: /truncate -s 1024 .*odd\.img/,
    }));

  test('a FIFO, without waiting for its writer', { timeout: 5000 }, async () => {
    const path = join(directory, 'fifo');
    execFileSync('mkfifo', [path]);
    for (const readOnly of [true, false]) {
      await refused(file(path, { readOnly }), {
        code: 'IMAGE_INVALID',
        message: /^'file' driver requires '.*fifo' to be a regular file$/,
        hint: /path of a disk image/,
      });
    }
  });

  test('a character device', () =>
    refused(file('/dev/null'), { code: 'IMAGE_INVALID', message: /regular file/, hint: /disk image/ }));

  test('a file given to host_device', () =>
    refused(
      { driver: 'host_device', nodeName: 'n', filename: image('plain.img', 512) },
      {
        code: 'IMAGE_INVALID',
        message: /^'host_device' driver requires '.*plain\.img' to be a block device$/,
        hint: /driver=file/,
      },
    ));

  test('options that need each other', async () => {
    const path = image('options.img', 512);
    await refused(file(path, { aio: 'native' }), {
      code: 'INVALID_ARGUMENT',
      message: /requires cache\.direct=on/,
    });
    await refused(file(path, { detectZeroes: 'unmap' }), {
      code: 'INVALID_ARGUMENT',
      message: /detect-zeroes to unmap is not allowed without setting discard operation to unmap/,
    });
  });

  test('sizes of nodes without a file', async () => {
    await refused(
      { driver: 'memory', nodeName: 'n', size: 1000 },
      { code: 'IMAGE_INVALID', message: /1000/, hint: /./ },
    );
    for (const size of [-512, 1.5, Number.NaN, 2 ** 60]) {
      await refused(
        { driver: 'null-co', nodeName: 'n', size },
        { code: 'INVALID_ARGUMENT', message: /multiple of 512/ },
      );
    }
  });
});

describe('a node says what it can', () => {
  test('by its options', async () => {
    const path = image('abilities.img', 1 << 20);
    const cases: [Partial<FileNodeOptions>, [boolean, boolean, boolean, boolean]][] = [
      [{}, [true, false, true, false]],
      [{ discard: 'unmap' }, [true, true, true, true]],
      [{ discard: 'ignore' }, [true, false, true, false]],
      [{ discard: 'unmap', readOnly: true }, [true, false, false, false]],
    ];
    for (const [options, [flush, discard, writeZeroes, writeZeroesMayUnmap]] of cases) {
      const node = await open(path, options);
      assert.deepEqual(node.features, { flush, discard, writeZeroes, writeZeroesMayUnmap });
      assert.deepEqual([node.size, node.driver, node.filename], [1 << 20, 'file', path]);
      await node.close();
    }
  });

  test('memory is a disk that needs no flush and can be unmapped', async () => {
    const node = await openBlockNode({ driver: 'memory', nodeName: 'ram', size: 1 << 30 });
    assert.deepEqual(node.features, {
      flush: true,
      discard: true,
      writeZeroes: true,
      writeZeroesMayUnmap: true,
    });
    assert.equal(node.size, 1 << 30);
    await node.resize(1 << 20);
    assert.equal(node.size, 1 << 20);
    await node.close();
  });

  test('closing twice is closing once', async () => {
    const node = await open(image('twice.img', 512));
    const before = openFdCount();
    await node.close();
    const other = await open(image('twice-2.img', 512));
    await node.close();
    assert.equal(openFdCount(), before);
    await other.close();
  });
});

describe('resize', () => {
  test('changes the file, in whole sectors only', async () => {
    const path = image('resize.img', 4096);
    const node = await open(path);
    await node.resize(1 << 20);
    assert.deepEqual([node.size, statSync(path).size], [1 << 20, 1 << 20]);
    await node.resize(512);
    assert.deepEqual([node.size, statSync(path).size], [512, 512]);
    for (const size of [513, -512, 1.5, Number.NaN, 2 ** 60]) {
      await assert.rejects(node.resize(size), { code: 'INVALID_ARGUMENT' });
    }
    assert.equal(statSync(path).size, 512);
    await node.close();
  });

  test('is refused on a read-only node, whatever its block driver', async () => {
    const path = image('resize-ro.img', 512);
    const nodes = [
      await open(path, { readOnly: true }),
      await openBlockNode({ driver: 'null-co', nodeName: 'n', readOnly: true }),
      await openBlockNode({ driver: 'memory', nodeName: 'n', size: 512, readOnly: true }),
    ];
    for (const node of nodes) {
      await assert.rejects(node.resize(1024), { code: 'IMAGE_READ_ONLY' }, node.driver);
      await node.close();
    }
    assert.equal(statSync(path).size, 512);
  });
});

test('the owner of an image does not matter, its permissions do', async () => {
  const path = image('owned.img', 512);
  chmodSync(path, 0o666);
  if (process.geteuid?.() === 0) {
    chownSync(path, 12345, 12345);
  }
  await asNobody(async () => {
    const node = await open(path);
    assert.equal(node.readOnly, false);
    await node.close();
  });
});
