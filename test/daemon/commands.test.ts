import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { packageVersion } from '../../src/daemon/version.js';
import { type Message, QmpClient } from '../qmp/client.js';
import { Fakes } from './fakes.js';

let directory: string;
let path: string;
let fakes: Fakes;
let daemon: StorageDaemon;
let client: QmpClient;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-commands-'));
  path = join(directory, 'qmp.sock');
  fakes = new Fakes();
  daemon = new StorageDaemon(fakes.factories);
  await daemon.startMonitor(path);
  client = await QmpClient.open(path);
});

afterEach(async () => {
  client.close();
  await daemon.close();
  rmSync(directory, { recursive: true });
});

describe('QMP commands of the daemon', () => {
  it('tell what there is', async () => {
    assert.deepEqual(await client.succeed('query-version'), {
      qemu: { major: 7, minor: 2, micro: 0 },
      package: `vduse ${packageVersion}`,
    });
    assert.match(packageVersion, /^\d+\.\d+\.\d+/);
    const commands = (await client.succeed('query-commands')) as { name: string }[];
    const names = commands.map(({ name }) => name);
    for (const name of ['qmp_capabilities', 'query-commands', 'blockdev-add', 'block-export-del', 'quit']) {
      assert.ok(names.includes(name), name);
    }
    assert.equal(new Set(names).size, names.length);
    assert.deepEqual(await client.succeed('query-chardev'), [
      { label: 'qmp', filename: `unix:${path},server=on`, 'frontend-open': true },
    ]);
  });

  it('take a node from its opening to its end', async () => {
    assert.deepEqual(
      await client.succeed('blockdev-add', {
        driver: 'host_device',
        'node-name': 'd',
        filename: '/dev/sdx',
        aio: 'native',
        cache: { direct: true, 'no-flush': true },
        discard: 'unmap',
        'detect-zeroes': 'unmap',
        'read-only': true,
        'auto-read-only': true,
        locking: 'off',
      }),
      {},
    );
    await client.succeed('blockdev-add', {
      driver: 'null-co',
      'node-name': 'n',
      size: 4096,
      'read-zeroes': true,
    });
    const zero = { iops: 0, iops_rd: 0, iops_wr: 0, bps: 0, bps_rd: 0, bps_wr: 0, write_threshold: 0 };
    assert.deepEqual(await client.succeed('query-named-block-nodes', { flat: true }), [
      {
        'node-name': 'n',
        drv: 'null-co',
        ro: false,
        file: 'json:{"driver": "null-co", "size": 4096, "read-zeroes": true}',
        image: {
          filename: 'json:{"driver": "null-co", "size": 4096, "read-zeroes": true}',
          format: 'null-co',
          'virtual-size': 1 << 20,
          'actual-size': 0,
        },
        cache: { writeback: true, direct: false, 'no-flush': false },
        detect_zeroes: 'off',
        backing_file_depth: 0,
        encrypted: false,
        ...zero,
      },
      {
        'node-name': 'd',
        drv: 'host_device',
        ro: true,
        file: '/dev/sdx',
        image: {
          filename: '/dev/sdx',
          format: 'host_device',
          'virtual-size': 1 << 20,
          'actual-size': 0,
          'dirty-flag': false,
        },
        cache: { writeback: true, direct: true, 'no-flush': true },
        detect_zeroes: 'unmap',
        backing_file_depth: 0,
        encrypted: false,
        ...zero,
      },
    ]);
    await client.succeed('block_resize', { 'node-name': 'n', size: 8192 });
    assert.equal(fakes.nodes[1].size, 8192);
    await client.succeed('blockdev-del', { 'node-name': 'n' });
    await client.fail('blockdev-del', { 'node-name': 'n' }, "Failed to find node with node-name='n'");
    await client.fail(
      'blockdev-add',
      { driver: 'null-co' },
      "'node-name' must be specified for the root node",
    );
    await client.fail(
      'blockdev-add',
      { driver: 'file', 'node-name': 'x', filename: 'f', cache: { dirct: true } },
      "Parameter 'cache.dirct' is unexpected",
    );
    await client.fail(
      'blockdev-add',
      { driver: 'null-co', 'node-name': 'x', 'detect-zeroes': 'unmap' },
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    );
  });

  it('take an export from its making to its end, which is an event', async () => {
    await client.succeed('object-add', { 'qom-type': 'iothread', id: 'io0' });
    await client.succeed('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
    await client.succeed('block-export-add', {
      type: 'vduse-blk',
      id: 'e',
      'node-name': 'n',
      name: 'disk',
      writable: true,
      'num-queues': 4,
      'queue-size': 128,
      'logical-block-size': 4096,
      serial: 'S1',
      attach: 'vhost',
      iothread: ['io0'],
      writethrough: false,
      'fixed-iothread': true,
    });
    const { node, ...options } = fakes.exports[0].options;
    assert.equal(node.nodeName, 'n');
    assert.deepEqual(options, {
      id: 'e',
      name: 'disk',
      writable: true,
      queueCount: 4,
      queueSize: 128,
      logicalBlockSize: 4096,
      serial: 'S1',
      attach: 'vhost',
      threads: [{ name: 'io0' }],
    });
    assert.deepEqual(await client.succeed('query-block-exports'), [
      { id: 'e', type: 'vduse-blk', 'node-name': 'n', 'shutting-down': false },
    ]);
    await client.fail('object-del', { id: 'io0' }, "object 'io0' is in use, can not be deleted");
    await client.fail('blockdev-del', { 'node-name': 'n' }, 'Node n is in use');
    fakes.exports[0].busy = true;
    await client.fail('block-export-del', { id: 'e' }, "export 'e' still in use");
    await client.fail(
      'block-export-del',
      { id: 'e', mode: 'soft' },
      "Parameter 'mode' does not accept value 'soft'",
    );
    fakes.exports[0].endsLate = true;
    client.send('{"execute":"block-export-del","arguments":{"id":"e","mode":"hard"}}');
    // QEMU tells the event before it answers.
    const event = await client.read();
    assert.deepEqual(
      { ...event, timestamp: 0 },
      { timestamp: 0, event: 'BLOCK_EXPORT_DELETED', data: { id: 'e' } },
    );
    assert.deepEqual(await client.read(), { return: {} });
    assert.deepEqual(await client.succeed('query-block-exports'), []);
    await client.succeed('object-del', { id: 'io0' });
  });

  it('call a device by its number where it has no name', async () => {
    await client.succeed('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
    await client.succeed('block-export-add', { type: 'vduse-blk', id: 'e', 'node-name': 'n', 'vduse-id': 1 });
    await client.succeed('block-export-add', {
      type: 'vduse-blk',
      id: 'f',
      'node-name': 'n',
      'vduse-id': 2,
      name: '2',
    });
    assert.deepEqual(
      fakes.exports.map(({ options }) => options.name),
      ['1', '2'],
    );
    const add = { type: 'vduse-blk', id: 'g', 'node-name': 'n' };
    await client.fail('block-export-add', add, "Parameter 'name' is missing");
    await client.fail(
      'block-export-add',
      { ...add, 'vduse-id': 1, name: 'a' },
      "Parameters 'name' and 'vduse-id' are mutually exclusive",
    );
  });

  it("refuse exports in QEMU's words", async () => {
    await client.succeed('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
    const add = (more: Message) => ({ type: 'vduse-blk', id: 'v', 'node-name': 'n', name: 'foo', ...more });
    const cases: [Message, string][] = [
      [{ id: '9' }, 'Invalid block export id'],
      [{ 'node-name': 'x' }, "Cannot find device='' nor node-name='x'"],
      [{ 'num-queues': 0 }, 'num-queues must be greater than 0'],
      [{ 'num-queues': 2000 }, 'num-queues must be at most 1024'],
      [{ 'num-queues': 70000 }, "Parameter 'num-queues' expects uint16_t"],
      [{ 'queue-size': 2 }, 'queue-size is invalid'],
      [{ 'queue-size': 100 }, 'queue-size is invalid'],
      [{ 'queue-size': 0 }, 'queue-size is invalid'],
      [
        { 'logical-block-size': 513 },
        "Property v.logical-block-size doesn't take value '513', it's not a power of 2",
      ],
      [
        { 'logical-block-size': 5 },
        "Property v.logical-block-size doesn't take value 5 (minimum: 512, maximum: 2097152)",
      ],
      [{ iothread: 'zz' }, 'iothread "zz" not found'],
      [{ iothread: 1 }, "Invalid parameter type for 'iothread', expected: string or array of strings"],
      [{ writethrough: true }, 'writethrough=on is not supported'],
      [{ type: 'fuse' }, "Parameter 'type' does not accept value 'fuse'"],
      [{ attach: 'x' }, "Parameter 'attach' does not accept value 'x'"],
      [{ foo: 5 }, "Parameter 'foo' is unexpected"],
    ];
    for (const [more, desc] of cases) {
      await client.fail('block-export-add', add(more), desc);
    }
    assert.deepEqual(fakes.exports, []);
  });

  it('keep secrets to themselves', async () => {
    await client.succeed('object-add', { 'qom-type': 'secret', id: 's', data: 'c2VjcmV0', format: 'base64' });
    await client.fail(
      'object-add',
      { 'qom-type': 'secret', id: 't' },
      "Either 'file' or 'data' must be provided",
    );
    await client.fail(
      'object-add',
      { 'qom-type': 'secret', id: 't', data: '!', format: 'base64' },
      "secret 't': the data is not base64",
    );
    await client.fail(
      'object-add',
      { 'qom-type': 'secret', id: 't', data: 'a', file: 'b' },
      "'file' and 'data' are mutually exclusive",
    );
    await client.fail('object-add', { 'qom-type': 'iothread' }, "Parameter 'id' is missing");
    await client.fail(
      'object-add',
      { 'qom-type': 'no', id: 'x' },
      "Parameter 'qom-type' does not accept value 'no'",
    );
    await client.succeed('object-del', { id: 's' });
  });

  it('end the daemon', async () => {
    assert.equal(daemon.shutdownSignal.aborted, false);
    assert.deepEqual(await client.succeed('quit'), {});
    assert.equal(daemon.shutdownSignal.aborted, true);
    await client.fail(
      'blockdev-add',
      { driver: 'null-co', 'node-name': 'n' },
      'shutting down: a QMP client sent quit',
    );
    await daemon.close();
    assert.equal(await client.next(), undefined);
  });

  it('answer while an export is being ended through another monitor', async () => {
    const other = join(directory, 'other.sock');
    await daemon.startMonitor(other, { id: 'other' });
    await client.succeed('blockdev-add', { driver: 'null-co', 'node-name': 'n' });
    await client.succeed('block-export-add', { type: 'vduse-blk', id: 'e', 'node-name': 'n', name: 'e' });
    let finish = (): void => undefined;
    fakes.exports[0].inFlight = new Promise((settle) => {
      finish = settle;
    });
    client.send('{"execute":"block-export-del","arguments":{"id":"e"}}');
    await delay(20);
    const second = await QmpClient.open(other);
    assert.deepEqual(await second.execute('query-block-exports'), {
      return: [{ id: 'e', type: 'vduse-blk', 'node-name': 'n', 'shutting-down': true }],
    });
    assert.deepEqual(await second.execute('block-export-del', { id: 'e' }), {
      error: { class: 'GenericError', desc: "Export 'e' is already shutting down" },
    });
    finish();
    assert.equal((await client.read())['event'], 'BLOCK_EXPORT_DELETED');
    assert.deepEqual(await client.read(), { return: {} });
    second.close();
  });
});
