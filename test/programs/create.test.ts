import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openFileNode } from '../../src/block/drivers/file-node.js';
import { makeTempDir } from '../support/temp-dir.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const directory = makeTempDir();

function create(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [program, 'create', ...args], {
    cwd: directory,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
}

function inDirectory(name: string): string {
  return join(directory, name);
}

describe('vduse create', () => {
  it('makes a sparse image of the size', () => {
    assert.deepEqual(create('sparse.img', '1.5G'), {
      status: 0,
      stdout: 'sparse.img: 1.5 GiB, sparse\n',
      stderr: '',
    });
    const { size, blocks } = statSync(inDirectory('sparse.img'));
    assert.equal(size, 1.5 * 2 ** 30);
    assert.equal(blocks, 0);
  });

  it('rounds up to whole sectors, and says so', () => {
    const { stdout } = create('odd.img', '1000');
    assert.match(stdout, /1000 bytes rounded up to 1024/);
    assert.equal(statSync(inDirectory('odd.img')).size, 1024);
  });

  it('preallocates', () => {
    assert.equal(create('full.img', '9M', '--preallocate', 'full').status, 0);
    const { size, blocks } = statSync(inDirectory('full.img'));
    assert.equal(size, 9 << 20);
    assert.ok(blocks * 512 >= size);
  });

  it('refuses to replace an image, and replaces it when it is forced to', () => {
    writeFileSync(inDirectory('old.img'), 'precious');
    const refused = create('old.img', '1M');
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /exists already[\s\S]*--force/);
    assert.equal(readFileSync(inDirectory('old.img'), 'utf8'), 'precious');
    assert.equal(create('old.img', '1M', '--force').status, 0);
    assert.ok(readFileSync(inDirectory('old.img')).equals(Buffer.alloc(1 << 20)));
  });

  it('does not replace an image that is in use, forced or not', async () => {
    writeFileSync(inDirectory('used.img'), Buffer.alloc(4096, 1));
    const node = openFileNode({ driver: 'file', nodeName: 'a', filename: inDirectory('used.img') });
    try {
      const { status, stderr } = create('used.img', '1M', '--force');
      assert.equal(status, 1);
      assert.match(stderr, /lock/);
      assert.ok(readFileSync(inDirectory('used.img')).equals(Buffer.alloc(4096, 1)));
    } finally {
      await node.close();
    }
  });

  it('does not take what is no file, or a place that is not there', () => {
    mkdirSync(inDirectory('place'));
    symlinkSync('/dev/null', inDirectory('link'));
    assert.match(create('place', '1M', '--force').stderr, /it is a directory/);
    assert.match(create('link', '1M', '--force').stderr, /it is no file/);
    assert.match(create('absent/x.img', '1M').stderr, /directory does not exist[\s\S]*mkdir -p absent/);
    assert.match(create('sparse.img/x', '1M').stderr, /its directory is no directory/);
  });

  it('never takes a block device', (context) => {
    const disk = readdirSync('/dev')
      .map((name) => join('/dev', name))
      .find((path) => statSync(path, { throwIfNoEntry: false })?.isBlockDevice() === true);
    if (disk === undefined) {
      context.skip('there is no block device');
      return;
    }
    const { status, stderr } = create(disk, '1M', '--force');
    assert.equal(status, 1);
    assert.match(stderr, /it is a block device/);
  });

  it('leaves nothing where it fails', () => {
    const tooLarge = create('large.img', '8191P');
    assert.equal(tooLarge.status, 2);
    const noSpace = create('large.img', '100T', '--preallocate', 'full');
    assert.equal(noSpace.status, 1);
    assert.match(noSpace.stderr, /are free[\s\S]*--preallocate/);
    assert.equal(existsSync(inDirectory('large.img')), false);
  });

  it('takes no size that is none', () => {
    for (const size of ['0', 'big', '10GB', '1.5']) {
      const { status, stderr } = create('none.img', size);
      assert.equal(status, 2, stderr);
      assert.match(stderr, /^vduse: create: size '.*\n {2}hint: /);
    }
    assert.equal(existsSync(inDirectory('none.img')), false);
  });
});
