/** Nodes over nodes behind real devices: what requests see, and what changes under them. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import type { BlockNode, BlockNodeOptions, ReopenedNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { allPermissions } from '../../src/daemon/graph/permissions.js';
import { NodeTable, unnamedUser } from '../../src/daemon/node-table.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { openFdCount } from '../support/resources.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const directory = makeTempDir();
let images = 0;
let disks: DaemonDisks;
let daemon: StorageDaemon;

beforeEach(() => {
  disks = new DaemonDisks();
  daemon = disks.daemon;
});

afterEach(() => disks.close());

function image(size: number): string {
  return makeSparseFile(join(directory, `image-${images++}`), size);
}

const filled = (value: number, length = 4096) => new Uint8Array(length).fill(value);

describe('a raw node', () => {
  test('is a part of its file: requests move by the offset, and end with the size', async () => {
    const path = image(4 * MiB);
    await daemon.addNode({
      driver: 'raw',
      nodeName: 'part',
      offset: MiB,
      size: MiB,
      discard: 'unmap',
      file: { driver: 'file', filename: path },
    });
    const disk = await disks.export('part');
    assert.equal(disk.size, MiB);
    await disk.write(0, filled(1));
    await disk.write(MiB - 4096, filled(2));
    await disk.write(8192, filled(3));
    await disk.discard(8192, 4096);
    await assert.rejects(disk.write(MiB, filled(9)));
    const file = readFileSync(path);
    assert.ok(file.subarray(0, MiB).every((byte) => byte === 0));
    assert.ok(file.subarray(MiB, MiB + 4096).equals(filled(1)));
    assert.ok(file.subarray(MiB + 8192, MiB + 12288).every((byte) => byte === 0));
    assert.ok(file.subarray(2 * MiB - 4096, 2 * MiB).equals(filled(2)));
    assert.ok(file.subarray(2 * MiB).every((byte) => byte === 0));
    const back = new Uint8Array(4096);
    await disk.read(MiB - 4096, back);
    assert.deepEqual(back, filled(2));
  });

  test('keeps what is discarded unless it was told to unmap', async () => {
    const path = image(MiB);
    await daemon.addNode({ driver: 'raw', nodeName: 'keeps', file: { driver: 'file', filename: path } });
    const disk = await disks.export('keeps');
    assert.equal(disk.canDiscard, false);
    await disk.write(0, filled(1));
    await disk.writeZeroes(0, 4096, { unmap: true });
    const back = filled(1);
    await disk.read(0, back);
    assert.deepEqual(back, filled(0));
  });
});

describe('nodes that share a node', () => {
  test('each learn of its new size, through all that is between', async () => {
    await daemon.addNode({ driver: 'memory', nodeName: 'base', size: 4 * MiB });
    await daemon.addNode({ driver: 'raw', nodeName: 'all', file: 'base' });
    await daemon.addNode({ driver: 'raw', nodeName: 'again', file: 'all' });
    const [base, again] = [await disks.export('base'), await disks.export('again')];
    await base.write(0, filled(7));
    const back = new Uint8Array(4096);
    await again.read(0, back);
    assert.deepEqual(back, filled(7));
    await daemon.resizeNode({ nodeName: 'again', size: 8 * MiB });
    assert.deepEqual([base.size, again.size], [8 * MiB, 8 * MiB]);
    await daemon.resizeNode({ nodeName: 'base', size: 2 * MiB });
    assert.deepEqual([base.size, again.size], [2 * MiB, 2 * MiB]);
    await daemon.addNode({ driver: 'raw', nodeName: 'part', offset: MiB, file: 'base' });
    await assert.rejects(daemon.resizeNode({ nodeName: 'all', size: 4 * MiB }), { code: 'BUSY' });
    // The one that keeps others from it may do it itself.
    await daemon.resizeNode({ nodeName: 'part', size: 4 * MiB });
    assert.equal(base.size, 5 * MiB);
  });

  test('close from the top, and inline ones with their parent, with all that they held', async () => {
    const before = openFdCount();
    const path = image(MiB);
    const file = { driver: 'file', filename: path, nodeName: 'inner' } as const;
    await daemon.addNode({ driver: 'raw', nodeName: 'outer', file });
    assert.equal(openFdCount(), before + 1);
    await assert.rejects(daemon.deleteNode('inner'), { message: 'Node inner is not owned by the monitor' });
    await assert.rejects(daemon.addNode({ driver: 'raw', nodeName: 'x', offset: 2 * MiB, file: 'inner' }), {
      code: 'INVALID_ARGUMENT',
    });
    // Whoever names it keeps it.
    await daemon.addNode({ driver: 'raw', nodeName: 'other', file: 'inner' });
    await daemon.deleteNode('outer');
    assert.deepEqual(
      daemon.nodes.map(({ nodeName }) => nodeName),
      ['other', 'inner'],
    );
    await daemon.deleteNode('other');
    assert.deepEqual(daemon.nodes, []);
    assert.equal(openFdCount(), before);
    // A parent that can't be opened takes its inline child with it.
    await assert.rejects(daemon.addNode({ driver: 'raw', nodeName: 'x', offset: 2 * MiB, file }));
    assert.deepEqual(daemon.nodes, []);
    assert.equal(openFdCount(), before);
  });

  test('may be written by one only where each is', async () => {
    await daemon.addNode({ driver: 'memory', nodeName: 'base', size: MiB, readOnly: true });
    await daemon.addNode({ driver: 'raw', nodeName: 'top', file: 'base' });
    await assert.rejects(disks.export('top'), {
      code: 'IMAGE_READ_ONLY',
      message: 'Block node is read-only',
    });
    await disks.export('top', { writable: false });
  });
});

describe('a node that is opened again', () => {
  test('serves all requests, before, during and after', async () => {
    const path = image(8 * MiB);
    const file = { driver: 'file', nodeName: 'file', filename: path } as const;
    await daemon.addNode(file);
    await daemon.addNode({ driver: 'raw', nodeName: 'top', file: 'file' });
    const disk = await disks.export('top', { queueCount: 2 });
    let writes = 0;
    let going = true;
    const writers = [0, 1, 2, 3].map(async (writer) => {
      for (let n = 0; going; n = (n + 1) % 256) {
        await disk.write((writer * 256 + n) * 4096, filled(writer + 1));
        writes++;
      }
    });
    for (const direct of [true, false, true]) {
      const before = writes;
      await daemon.reopenNodes([{ ...file, cache: { direct }, discard: 'unmap' }]);
      assert.equal(daemon.nodes.find(({ nodeName }) => nodeName === 'file')?.cacheDirect, direct);
      while (writes < before + 50) {
        await new Promise((turn) => setImmediate(turn));
      }
    }
    await assert.rejects(daemon.reopenNodes([{ ...file, filename: image(MiB) }]), {
      message: "Cannot change the option 'filename'",
    });
    await assert.rejects(daemon.reopenNodes([{ ...file, readOnly: true }]), {
      message: "Read-only block node 'file' cannot support read-write users",
    });
    going = false;
    await Promise.all(writers);
    const content = readFileSync(path);
    for (let writer = 0; writer < 4; writer++) {
      assert.ok(content.subarray(writer * MiB, writer * MiB + 4096).equals(filled(writer + 1)));
    }
  });

  test('may work on another child from then on', async () => {
    await daemon.addNode({ driver: 'memory', nodeName: 'a', size: MiB });
    await daemon.addNode({ driver: 'memory', nodeName: 'b', size: 2 * MiB });
    await daemon.addNode({ driver: 'raw', nodeName: 'top', file: 'a' });
    const disk = await disks.export('top');
    await disk.write(0, filled(1));
    await daemon.reopenNodes([{ driver: 'raw', nodeName: 'top', file: 'b' }]);
    assert.equal(disk.size, 2 * MiB);
    const back = filled(9);
    await disk.read(0, back);
    assert.deepEqual(back, filled(0));
    await daemon.deleteNode('a');
    await assert.rejects(daemon.deleteNode('b'), { message: 'Block device b is in use' });
    await assert.rejects(daemon.reopenNodes([{ driver: 'raw', nodeName: 'top', file: 'a' }]), {
      code: 'NOT_FOUND',
    });
    await disk.read(0, back);
  });
});

describe('several nodes that are opened again', () => {
  const find = (name: string) => daemon.nodes.find(({ nodeName }) => nodeName === name)!;

  test('are all what they were when the second one can not be, and their users go on', async () => {
    const paths = [image(MiB), image(MiB)];
    const [a, b] = paths.map((filename, n) => ({ driver: 'file', nodeName: 'ab'[n], filename }) as const);
    await daemon.addNode(a);
    await daemon.addNode(b);
    const exported = [await disks.export('a'), await disks.export('b')];
    const before = openFdCount();
    const opened = [find('a').opened, find('b').opened];
    let going = true;
    const load = exported.map(async (disk, n) => {
      for (let at = 0; going; at = (at + 4096) % MiB) {
        await disk.write(at, filled(n + 1));
      }
    });
    const direct = { cache: { direct: true } } as const;
    const failing = [
      [
        { ...a, ...direct },
        { ...b, ...direct, filename: a.filename },
      ],
      [
        { ...a, ...direct },
        { ...b, ...direct, readOnly: true },
      ],
      [
        { ...a, ...direct },
        { ...a, cache: { noFlush: true } },
        { driver: 'memory', nodeName: 'b', size: MiB },
      ],
    ] as const;
    for (const nodes of failing) {
      await assert.rejects(daemon.reopenNodes(nodes));
      assert.deepEqual([find('a').opened, find('b').opened], opened);
      assert.deepEqual([find('a').cacheDirect, find('a').options], [false, a]);
      assert.equal(openFdCount(), before);
    }
    await assert.rejects(
      daemon.reopenNodes([
        { ...a, ...direct },
        { ...b, nodeName: 'c' },
      ]),
      {
        code: 'NOT_FOUND',
      },
    );
    // The locks are held as before.
    await assert.rejects(openBlockNode({ ...a, nodeName: 'x' }), { code: 'IMAGE_LOCKED' });
    await daemon.reopenNodes([
      { ...a, ...direct },
      { ...b, ...direct },
    ]);
    assert.deepEqual([find('a').cacheDirect, find('b').cacheDirect], [true, true]);
    going = false;
    await Promise.all(load);
    assert.equal(openFdCount(), before);
  });

  test('may be one above the other', async () => {
    const file = { driver: 'file', nodeName: 'file', filename: image(2 * MiB) } as const;
    await daemon.addNode(file);
    await daemon.addNode({ driver: 'raw', nodeName: 'top', file: 'file', size: MiB });
    const disk = await disks.export('top');
    await disk.write(0, filled(1));
    const direct = { ...file, cache: { direct: true } } as const;
    await assert.rejects(
      daemon.reopenNodes([direct, { driver: 'raw', nodeName: 'top', file: 'file', offset: 3 * MiB }]),
      { code: 'INVALID_ARGUMENT' },
    );
    assert.deepEqual([find('file').cacheDirect, find('top').size], [false, MiB]);
    await daemon.reopenNodes([direct, { driver: 'raw', nodeName: 'top', file: 'file', offset: MiB }]);
    assert.deepEqual([find('file').cacheDirect, disk.size], [true, MiB]);
    const back = filled(9);
    await disk.read(0, back);
    assert.deepEqual(back, filled(0));
  });

  test('go back with the inline ones below them', async () => {
    const filename = image(MiB);
    const top = (offset: number, direct: boolean) =>
      ({
        driver: 'raw',
        nodeName: 'top',
        offset,
        file: { driver: 'file', nodeName: 'inner', filename, cache: { direct } },
      }) as const;
    await daemon.addNode(top(0, false));
    const disk = await disks.export('top');
    const before = openFdCount();
    await assert.rejects(daemon.reopenNodes([top(2 * MiB, true)]), { code: 'INVALID_ARGUMENT' });
    assert.deepEqual([find('inner').cacheDirect, disk.size, openFdCount()], [false, MiB, before]);
    await disk.write(0, filled(3));
    await daemon.reopenNodes([top(0, true)]);
    assert.deepEqual([find('inner').cacheDirect, openFdCount()], [true, before]);
    await disk.write(0, filled(4));
  });

  test('keep nobody out whom they do not need to when they become readers', async () => {
    const file = { driver: 'file', nodeName: 'file', filename: image(MiB) } as const;
    await daemon.addNode(file);
    const reader = { ...file, nodeName: 'x', readOnly: true } as const;
    await assert.rejects(openBlockNode(reader), { code: 'IMAGE_LOCKED' });
    await assert.rejects(
      daemon.reopenNodes([
        { ...file, readOnly: true },
        { ...file, filename: '/' },
      ]),
    );
    await assert.rejects(openBlockNode(reader), { code: 'IMAGE_LOCKED' });
    await daemon.reopenNodes([{ ...file, readOnly: true }]);
    const other = await openBlockNode(reader);
    await assert.rejects(openBlockNode({ ...reader, readOnly: false }), { code: 'IMAGE_LOCKED' });
    await assert.rejects(
      (async () => {
        const writer = await openBlockNode({ ...file, nodeName: 'y', locking: 'off' });
        await writer.close();
        // The other reader holds back what a writer wants.
        await daemon.reopenNodes([file]);
      })(),
      { code: 'IMAGE_LOCKED' },
    );
    await other.close();
    await daemon.reopenNodes([file]);
    assert.equal(find('file').readOnly, false);
    await assert.rejects(openBlockNode(reader), { code: 'IMAGE_LOCKED' });
  });

  test('are opened again also where what they were does not close, and that is told', async () => {
    const open = async (options: BlockNodeOptions): Promise<BlockNode> => {
      const node = await openBlockNode(options);
      const reopen = async (changed: BlockNodeOptions): Promise<ReopenedNode> => {
        const again = await openBlockNode({ ...changed, size: 2 * MiB } as BlockNodeOptions);
        const commit = () => node.close().then(() => Promise.reject(new Error('the cluster is away')));
        return { node: again, commit, abort: () => again.close() };
      };
      return Object.assign(node, { reopen });
    };
    const table = new NodeTable({ open, throttleGroup: () => undefined });
    const options = { driver: 'memory', nodeName: 'm', size: MiB } as const;
    const node = await table.add(options);
    const sizes: number[] = [];
    const permissions = () => ({ uses: 0, shares: allPermissions });
    node.attach({ ...unnamedUser, permissions, resized: () => void sizes.push(node.size) });
    await assert.rejects(table.reopen([options]), {
      message: 'opened again, but not closed before: the cluster is away',
    });
    assert.deepEqual(sizes, [2 * MiB]);
    await node.close();
  });

  test('makes no circle', async () => {
    const raw = (nodeName: string, file: string) => ({ driver: 'raw', nodeName, file }) as const;
    await daemon.addNode({ driver: 'file', nodeName: 'file', filename: image(MiB) });
    await daemon.addNode(raw('low', 'file'));
    await daemon.addNode(raw('middle', 'low'));
    await daemon.addNode(raw('high', 'middle'));
    for (const child of ['low', 'middle', 'high']) {
      await assert.rejects(daemon.reopenNodes([raw('low', child)]), {
        code: 'INVALID_ARGUMENT',
        message: `Making '${child}' a file child of 'low' would create a cycle`,
      });
    }
    await daemon.reopenNodes([raw('high', 'file')]);
    await daemon.reopenNodes([raw('low', 'high')]);
    for (const nodeName of ['middle', 'low', 'high', 'file']) {
      await daemon.deleteNode(nodeName);
    }
  });
});
