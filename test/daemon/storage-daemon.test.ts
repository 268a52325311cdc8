import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { VduseBlkExportOptions } from '../../src/daemon/block-export.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { QmpClient } from '../qmp/client.js';
import { openFdCount } from '../support/resources.js';
import { Fakes, gate } from './fakes.js';

let directory: string;
let fakes: Fakes;
let daemon: StorageDaemon;

const disk = (nodeName: string, readOnly = false) => ({ driver: 'null-co', nodeName, readOnly }) as const;

const served = (id: string, nodeName: string, more: object = {}) => ({
  type: 'vduse-blk' as const,
  id,
  nodeName,
  name: id,
  ...more,
});

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-daemon-'));
  fakes = new Fakes();
  daemon = new StorageDaemon(fakes.factories);
});

afterEach(async () => {
  await daemon.close();
  rmSync(directory, { recursive: true });
});

const withNodeName = (options: VduseBlkExportOptions) => ({ ...options, node: options.node.nodeName });

describe('block nodes of a daemon', () => {
  it('are listed, the newest first, and close when they are deleted', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('b'));
    assert.deepEqual(
      daemon.nodes.map(({ nodeName }) => nodeName),
      ['b', 'a'],
    );
    await daemon.deleteNode('a');
    assert.deepEqual(fakes.log, ['close node a']);
    await assert.rejects(daemon.deleteNode('a'), {
      code: 'NOT_FOUND',
      message: "Failed to find node with node-name='a'",
    });
  });

  it('have names that are names, once', async () => {
    await daemon.addNode(disk('a'));
    await assert.rejects(daemon.addNode(disk('a')), {
      code: 'ALREADY_EXISTS',
      message: "Duplicate nodes with node-name='a'",
    });
    for (const name of ['', '9a', 'a b', 'a/b', '#block1']) {
      await assert.rejects(daemon.addNode(disk(name)), { message: `Invalid node-name: '${name}'` });
    }
    await assert.rejects(daemon.addNode(disk('a'.repeat(32))), { message: 'Node name too long' });
    await daemon.addNode(disk('a'.repeat(31)));
    assert.equal(fakes.nodes.length, 2);
  });

  it('leave nothing when they cannot be opened', async () => {
    fakes.openError = new Error('no such image');
    await assert.rejects(daemon.addNode(disk('a')), { message: 'no such image' });
    fakes.openError = undefined;
    await daemon.addNode(disk('a'));
  });

  it('cannot go while an export serves them', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a'));
    await assert.rejects(daemon.deleteNode('a'), { code: 'BUSY', message: 'Node a is in use' });
    await daemon.deleteExport('e');
    await daemon.deleteNode('a');
    assert.deepEqual(fakes.log, ['close export e', 'close node a']);
  });

  it('tell their exports when they change their size', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('b'));
    await daemon.addNode(disk('r', true));
    await daemon.addExport(served('e', 'a'));
    await daemon.addExport(served('f', 'a'));
    await daemon.addExport(served('g', 'b'));
    await daemon.resizeNode({ nodeName: 'a', size: 1000 });
    assert.deepEqual(fakes.log, ['resize a 1024', 'resized f', 'resized e']);
    await assert.rejects(daemon.resizeNode({ nodeName: 'r', size: 1024 }), {
      code: 'IMAGE_READ_ONLY',
      message: 'Image is read-only',
    });
    await assert.rejects(daemon.resizeNode({ nodeName: 'a', size: -1 }), {
      message: "Parameter 'size' expects a >0 size",
    });
    await assert.rejects(daemon.resizeNode({ size: 1 }), {
      message: "Cannot find device='' nor node-name=''",
    });
    await assert.rejects(daemon.resizeNode({ device: 'a', size: 1 }), {
      message: "Cannot find device='a' nor node-name=''",
    });
  });
});

describe('exports of a daemon', () => {
  it('are made of a node and what was asked for', async () => {
    await daemon.addObject({ type: 'iothread', id: 'io0' });
    await daemon.addObject({ type: 'iothread', id: 'io1' });
    await daemon.addNode(disk('a'));
    await daemon.addExport(
      served('e', 'a', { writable: true, queueCount: 2, attach: 'virtio', iothreads: ['io1', 'io0'] }),
    );
    assert.deepEqual(withNodeName(fakes.exports[0].options), {
      id: 'e',
      node: 'a',
      name: 'e',
      writable: true,
      queueCount: 2,
      attach: 'virtio',
      threads: [{ name: 'io1' }, { name: 'io0' }],
    });
    await daemon.addExport(served('f', 'a'));
    assert.deepEqual(withNodeName(fakes.exports[1].options), {
      id: 'f',
      node: 'a',
      name: 'f',
      writable: false,
    });
    assert.deepEqual(
      daemon.exports.map(({ id }) => id),
      ['f', 'e'],
    );
  });

  it('are refused for what is missing or in use', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('r', true));
    await daemon.addExport(served('e', 'a'));
    await assert.rejects(daemon.addExport(served('e', 'none')), {
      code: 'ALREADY_EXISTS',
      message: "Block export id 'e' is already in use",
    });
    await assert.rejects(daemon.addExport(served('9', 'a')), { message: 'Invalid block export id' });
    await assert.rejects(daemon.addExport(served('f', 'none')), {
      code: 'NOT_FOUND',
      message: "Cannot find device='' nor node-name='none'",
    });
    await assert.rejects(daemon.addExport(served('f', 'r', { writable: true })), {
      code: 'IMAGE_READ_ONLY',
      message: 'Cannot export read-only node as writable',
    });
    await assert.rejects(daemon.addExport(served('f', 'a', { iothreads: ['io0'] })), {
      code: 'NOT_FOUND',
      message: 'iothread "io0" not found',
    });
    await daemon.addObject({ type: 'secret', id: 'io0', secret: Buffer.from('s') });
    await assert.rejects(daemon.addExport(served('f', 'a', { iothreads: ['io0'] })), {
      message: 'iothread "io0" not found',
    });
    assert.equal(fakes.exports.length, 1);
  });

  it('share a node, but only one of the disks writes', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a', { writable: true }));
    await assert.rejects(daemon.addExport(served('f', 'a', { writable: true })), {
      code: 'BUSY',
      message: "node 'a' has a writable export already: 'e'",
      hint: 'Export it with writable=off, or delete the other export first.',
    });
    await daemon.addExport(served('f', 'a'));
    assert.equal(daemon.exports.length, 2);
  });

  it('stay when a front-end uses them, unless the deletion is hard', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a'));
    fakes.export('e').busy = true;
    await assert.rejects(daemon.deleteExport('e'), {
      code: 'BUSY',
      message: "export 'e' still in use",
      hint: "Use mode='hard' to force client disconnect",
    });
    await daemon.deleteExport('e', 'hard');
    assert.deepEqual(fakes.log, ['close export e hard']);
    await assert.rejects(daemon.deleteExport('e'), {
      code: 'NOT_FOUND',
      message: "Export 'e' is not found",
    });
  });

  it('cannot be deleted twice at once', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a'));
    const requests = gate();
    fakes.export('e').inFlight = requests.passed;
    const deleted = daemon.deleteExport('e');
    await delay(5);
    assert.equal(daemon.exports[0].shuttingDown, true);
    await assert.rejects(daemon.deleteExport('e', 'hard'), {
      code: 'BUSY',
      message: "Export 'e' is already shutting down",
    });
    requests.open();
    await deleted;
    assert.deepEqual(daemon.exports, []);
  });

  it('are forgotten when they end by themselves', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a'));
    fakes.export('e').end();
    await delay(5);
    assert.deepEqual(daemon.exports, []);
    // Whatever ended it, its queues are stopped before the node may close.
    assert.deepEqual(fakes.log, ['close export e hard']);
    await daemon.addExport(served('e', 'a'));
  });

  it('keep their node when they cannot be taken down', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('b'));
    await daemon.addExport(served('e', 'a'));
    fakes.export('e').closeError = new Error('stuck');
    fakes.export('e').end();
    await delay(5);
    assert.deepEqual(daemon.exports, []);
    await assert.rejects(daemon.deleteNode('a'), { code: 'BUSY' });
    await daemon.addExport(served('f', 'b'));
    fakes.export('f').closeError = new Error('stuck');
    await assert.rejects(daemon.deleteExport('f'), { message: 'stuck' });
    fakes.export('f').end();
    await delay(5);
    await assert.rejects(daemon.deleteNode('b'), { code: 'BUSY' });
    await daemon.close();
    assert.deepEqual(fakes.log, []);
    assert.equal(daemon.endedCleanly, false);
  });

  it('leave their id free when they cannot be made', async () => {
    await daemon.addNode(disk('a'));
    fakes.createError = new Error('no VDUSE');
    await assert.rejects(daemon.addExport(served('e', 'a')), { message: 'no VDUSE' });
    fakes.createError = undefined;
    await daemon.addExport(served('e', 'a'));
  });
});

describe('objects of a daemon', () => {
  it('have an id, and stay while an export uses them', async () => {
    await daemon.addObject({ type: 'iothread', id: 'io0' });
    await assert.rejects(daemon.addObject({ type: 'iothread', id: 'io0' }), {
      code: 'ALREADY_EXISTS',
      message: "attempt to add duplicate property 'io0' to object (type 'container')",
    });
    await assert.rejects(daemon.addObject({ type: 'iothread', id: '0' }), {
      message: "Parameter 'id' expects an identifier",
    });
    await daemon.addNode(disk('a'));
    await daemon.addExport(served('e', 'a', { iothreads: ['io0'] }));
    await assert.rejects(daemon.deleteObject('io0'), {
      code: 'BUSY',
      message: "object 'io0' is in use, can not be deleted",
    });
    await daemon.deleteExport('e');
    await daemon.deleteObject('io0');
    await assert.rejects(daemon.deleteObject('io0'), { message: "object 'io0' not found" });
  });
});

describe('operations of a daemon', () => {
  it('run one after the other, whoever asks', async () => {
    const open = gate();
    fakes.opening = open.passed;
    const first = daemon.addNode(disk('a'));
    const second = assert.rejects(daemon.addNode(disk('a')), {
      message: "Duplicate nodes with node-name='a'",
    });
    const exported = daemon.addExport(served('e', 'a'));
    const deleted = assert.rejects(daemon.deleteNode('a'), { message: 'Node a is in use' });
    open.open();
    await Promise.all([first, second, exported, deleted]);
    assert.equal(fakes.nodes.length, 1);
  });
});

describe('the end of a daemon', () => {
  it('ends exports with their requests, then nodes, then monitors, and leaves no file', async () => {
    const before = openFdCount();
    const path = join(directory, 'qmp.sock');
    const pidFile = join(directory, 'pid');
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('b'));
    await daemon.addExport(served('e', 'a'));
    await daemon.addExport(served('f', 'b'));
    await daemon.startMonitor(path);
    await daemon.createPidFile(pidFile);
    assert.equal(readFileSync(pidFile, 'utf8'), `${process.pid}\n`);
    const client = await QmpClient.open(path);
    const requests = gate();
    fakes.export('e').busy = true;
    fakes.export('e').inFlight = requests.passed;
    const closed = Promise.all([daemon.close(), daemon.close()]);
    const event = await client.read();
    assert.deepEqual(
      { ...event, timestamp: 0 },
      { timestamp: 0, event: 'BLOCK_EXPORT_DELETED', data: { id: 'f' } },
    );
    assert.deepEqual(fakes.log, ['close export f hard']);
    assert.ok(existsSync(path) && existsSync(pidFile));
    requests.open();
    assert.deepEqual((await client.read())['data'], { id: 'e' });
    assert.equal(await client.next(), undefined);
    await closed;
    assert.deepEqual(fakes.log.slice(1), ['close export e hard', 'close node b', 'close node a']);
    assert.ok(!existsSync(path) && !existsSync(pidFile));
    assert.ok(daemon.endedCleanly);
    await daemon.close();
    client.close();
    await delay(20);
    assert.equal(openFdCount(), before);
  });

  it('refuses what comes after it was asked for', async () => {
    daemon.requestShutdown('enough');
    daemon.requestShutdown('more than enough');
    const refused = { code: 'ABORTED', message: 'shutting down: enough' };
    await assert.rejects(daemon.addNode(disk('a')), refused);
    await assert.rejects(daemon.addObject({ type: 'iothread', id: 'io0' }), refused);
    await assert.rejects(daemon.startMonitor(join(directory, 'qmp.sock')), refused);
    assert.equal(fakes.nodes.length, 0);
    assert.ok(!existsSync(join(directory, 'qmp.sock')));
  });

  it('waits for what is being made, and takes it down too', async () => {
    const open = gate();
    await daemon.addNode(disk('a'));
    fakes.opening = open.passed;
    const exported = daemon.addExport(served('e', 'a'));
    const late = assert.rejects(daemon.addNode(disk('b')), { code: 'ABORTED' });
    await delay(5);
    const closed = daemon.close();
    open.open();
    await Promise.all([exported, late, closed]);
    assert.deepEqual(fakes.log, ['close export e hard', 'close node a']);
  });

  it('does not wait for a client that a character device waits for', async () => {
    const path = join(directory, 'qmp.sock');
    const waiting = daemon.addChardev({
      id: 'm',
      address: { type: 'unix', path },
      server: true,
      wait: true,
    });
    const aborted = assert.rejects(waiting, { code: 'ABORTED' });
    while (!existsSync(path)) {
      await delay(5);
    }
    await daemon.close();
    await aborted;
    assert.ok(!existsSync(path));
  });

  it('keeps a node open whose export does not end, and says that it was not clean', async () => {
    await daemon.addNode(disk('a'));
    await daemon.addNode(disk('b'));
    await daemon.addExport(served('e', 'a'));
    fakes.export('e').closeError = new Error('stuck');
    await daemon.close();
    assert.deepEqual(fakes.log, ['close node b']);
    assert.equal(daemon.endedCleanly, false);
  });
});
