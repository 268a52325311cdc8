import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { silentLogger } from '../../src/base/log.js';
import { openBlockNode } from '../../src/block/open.js';
import { exportDisk } from '../../src/daemon/export-disk.js';
import { exportOptions, toExportRequest } from '../../src/daemon/options/export-options.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { createVduseBlkExport } from '../../src/daemon/vduse-export.js';
import { createVhostUserBlkExport } from '../../src/daemon/vhost-user-export.js';
import { BLK_S } from '../../src/device/blk/blk-protocol.js';
import { parseKeyval } from '../../src/qmp/keyval.js';
import { checkOptions } from '../../src/qmp/qapi.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import { makeTestPool } from '../support/leftovers.js';
import { startRemote } from '../support/vhost-user-client.js';
import { until } from '../support/within.js';

const directory = mkdtempSync(join(tmpdir(), 'vduse-vhost-user-'));
after(() => rmSync(directory, { recursive: true }));
const hosts = makeTestPool({ size: 1 });

const requestOf = (text: string) =>
  toExportRequest(checkOptions(exportOptions.keyval, parseKeyval(text, { impliedKey: 'type' }).options));
const json = (options: object) => toExportRequest(checkOptions(exportOptions.json, options));

test("QEMU's options, as text and as JSON", () => {
  const text =
    'vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=/tmp/s,num-queues=4,logical-block-size=4k,writable=on,iothread=t';
  const expected = {
    type: 'vhost-user-blk',
    id: 'e',
    nodeName: 'd',
    writable: true,
    queueCount: 4,
    logicalBlockSize: 4096,
    iothreads: ['t'],
    address: { type: 'unix', path: '/tmp/s', server: true },
  };
  assert.deepEqual(requestOf(text), expected);
  const options = {
    type: 'vhost-user-blk',
    id: 'e',
    'node-name': 'd',
    addr: { type: 'unix', path: '/tmp/s' },
    'num-queues': 4,
    'logical-block-size': 4096,
    writable: true,
    iothread: 't',
  };
  assert.deepEqual(json(options), expected);
  const fd = requestOf('vhost-user-blk,id=e,node-name=d,addr.type=fd,addr.str=7');
  assert.deepEqual(fd, { type: 'vhost-user-blk', id: 'e', nodeName: 'd', address: { type: 'fd', fd: 7 } });
  const base = 'vhost-user-blk,id=e,node-name=d';
  assert.deepEqual(requestOf(`${base},addr.type=unix,addr.path=s,server=off,addr.abstract=on`), {
    type: 'vhost-user-blk',
    id: 'e',
    nodeName: 'd',
    address: { type: 'unix', path: '@s', server: false },
  });
});

test('a disk of more queues than the protocol can number is refused', async () => {
  const vhostUser = join(directory, 'many.sock');
  await assert.rejects(
    exportDisk({ driver: 'memory', nodeName: 'm', size: 1 << 20 }, { vhostUser, queues: 257 }),
    { code: 'INVALID_ARGUMENT', message: 'a vhost-user device has at most 256 queues, not 257' },
  );
  assert.equal(existsSync(vhostUser), false);
});

test("what can't be, in QEMU's words", () => {
  const base = 'vhost-user-blk,id=e,node-name=d';
  const unix = `${base},addr.type=unix,addr.path=/tmp/s`;
  for (const [text, message] of [
    [base, "Parameter 'addr' is missing"],
    [`${base},addr.type=unix`, "Parameter 'addr.path' is missing"],
    [`${base},addr.type=tcp`, "Parameter 'type' does not accept value 'tcp'"],
    [
      `${base},addr.type=inet,addr.host=localhost,addr.port=1`,
      "Only socket address types 'unix' and 'fd' are supported",
    ],
    [`${base},addr.type=fd,addr.str=mine`, "File descriptor named 'mine' has not been found"],
    [`${unix},num-queues=0`, 'num-queues must be greater than 0'],
    [`${unix},num-queues=257`, 'num-queues must be at most 256'],
    [`${unix},writethrough=on`, 'writethrough=on is not supported'],
    [
      `${unix},logical-block-size=100`,
      "Property e.logical-block-size doesn't take value 100 (minimum: 512, maximum: 2097152)",
    ],
  ]) {
    assert.throws(() => requestOf(text), { message }, text);
  }
});

test('a disk from code, for a virtual machine', async () => {
  const socket = join(directory, 'disk.sock');
  const disk = await exportDisk({ driver: 'memory', nodeName: 'm', size: 1 << 20 }, { vhostUser: socket });
  assert.equal(disk.path, socket);
  const remote = await startRemote(socket);
  let changes = 0;
  await remote.device.frontend.onConfigChange(() => changes++);
  assert.equal((await remote.client.write(0, new Uint8Array(4096).fill(1))).status, BLK_S.OK);
  await disk.resize(2 << 20);
  await until('the notification', () => changes === 1);
  assert.equal((await remote.client.read(1 << 20, 4096)).status, BLK_S.OK);
  assert.equal(disk.statistics.writes, 1);
  remote.vanish();
  await disk.close();
  await assert.rejects(startRemote(socket), { code: 'SYSTEM_CALL' });
});

test('one node over VDUSE and, read-only, over vhost-user at once', async () => {
  const bus = new VirtioVdpa();
  const kernel = new SoftwareVduse({ busDriver: bus });
  const daemon = new StorageDaemon({
    openBlockNode,
    exportCreators: {
      'vduse-blk': (options) => createVduseBlkExport(options, { hosts, logger: silentLogger, kernel }),
      'vhost-user-blk': (options) => createVhostUserBlkExport(options, { hosts, logger: silentLogger }),
    },
  });
  const socket = join(directory, 'both.sock');
  const vhostUser = {
    type: 'vhost-user-blk',
    id: 'vm',
    nodeName: 'm',
    address: { type: 'unix', path: socket, server: true },
  } as const;
  await daemon.addNode({ driver: 'memory', nodeName: 'm', size: 1 << 20 });
  await daemon.addExport({ type: 'vduse-blk', id: 'host', nodeName: 'm', name: 'host0', writable: true });
  await daemon.addExport(vhostUser);
  await kernel.addToBus('host0');

  await bus.disk('host0')!.write(4096, new Uint8Array(4096).fill(42));
  const remote = await startRemote(socket);
  const read = await remote.client.read(4096, 4096);
  assert.equal(read.status, BLK_S.OK);
  assert.ok(read.data.every((byte) => byte === 42));
  assert.equal((await remote.client.write(4096, new Uint8Array(4096))).status, BLK_S.IOERR);

  await assert.rejects(daemon.deleteExport('vm'), { code: 'BUSY' });
  await daemon.deleteExport('vm', 'hard');
  remote.vanish();
  await bus.disk('host0')!.read(4096, new Uint8Array(4096));
  await kernel.removeFromBus('host0');
  await daemon.close();
  assert.ok(daemon.endedCleanly);
});
