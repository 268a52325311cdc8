/** The export type nbd, through QMP: its server, its rules, and what becomes of its clients. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { openBlockNode } from '../../src/block/open.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { connectUnix } from '../../src/native/unix-socket.js';
import { RawClient } from '../nbd/raw-client.js';
import { type Message, QmpClient } from '../qmp/client.js';

const sizeBytes = 4 << 20;
const Command = { READ: 0, WRITE: 1, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;

let directory: string;
let socketPath: string;
let daemon: StorageDaemon;
let client: QmpClient;
let nbdClients: RawClient[];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-nbd-export-'));
  socketPath = join(directory, 'nbd.sock');
  nbdClients = [];
  daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
  await daemon.startMonitor(join(directory, 'qmp.sock'));
  client = await QmpClient.open(join(directory, 'qmp.sock'));
  await client.succeed('blockdev-add', { driver: 'memory', 'node-name': 'm', size: sizeBytes });
});

afterEach(async () => {
  for (const nbdClient of nbdClients) {
    nbdClient.close();
  }
  client.close();
  await daemon.close();
  rmSync(directory, { recursive: true });
});

const unixServer = () => ({ addr: { type: 'unix', data: { path: socketPath } } });
const nbdExport = (more: Message = {}) => ({ type: 'nbd', id: 'e', 'node-name': 'm', ...more });

async function connect(name: string): Promise<RawClient> {
  const nbdClient = await RawClient.open({ type: 'unix', path: socketPath }, { name });
  nbdClients.push(nbdClient);
  return nbdClient;
}

describe('the export type nbd', () => {
  it('serves a node, read and written, under its name', async () => {
    await client.succeed('nbd-server-start', unixServer());
    assert.equal(statSync(socketPath).mode & 0o777, 0o600);
    await client.succeed(
      'block-export-add',
      nbdExport({ writable: true, name: 'disk', description: 'a disk' }),
    );
    const nbd = await connect('disk');
    assert.equal(nbd.size, sizeBytes);
    const data = Buffer.alloc(65536, 0x5a);
    for (const request of [
      { type: Command.WRITE, flags: 1, offset: 4096, data },
      { type: Command.FLUSH },
      { type: Command.TRIM, flags: 1, offset: 8192, length: 4096 },
      { type: Command.WRITE_ZEROES, flags: 3, offset: 16384, length: 4096 },
    ]) {
      assert.equal((await nbd.call(request)).errno, 0, JSON.stringify(request));
    }
    const read = await nbd.call({ type: Command.READ, offset: 4096, length: 65536 });
    data.fill(0, 4096, 8192).fill(0, 12288, 16384);
    assert.deepEqual(read.data, data);
    const [served] = daemon.exports;
    const { inFlight, interrupts, ...counted } = served.statistics!;
    assert.deepEqual({ inFlight, interrupts }, { inFlight: 0, interrupts: 0 });
    assert.deepEqual(counted, {
      reads: 1,
      writes: 1,
      // The trim's FUA is a flush of its own.
      flushes: 2,
      unmaps: 2,
      readBytes: 65536,
      writeBytes: 65536,
      errors: 0,
    });
  });

  it('is read-only unless it is to be written', async () => {
    await client.succeed('nbd-server-start', unixServer());
    await client.succeed('block-export-add', nbdExport());
    const nbd = await connect('m');
    assert.equal(nbd.flags & 2, 2);
    assert.equal((await nbd.call({ type: Command.WRITE, offset: 0, data: Buffer.alloc(512) })).errno, 1);
  });

  it('needs a server, a name of its own, and no bitmap', async () => {
    await client.fail('block-export-add', nbdExport(), 'NBD server not running');
    await client.fail('nbd-server-stop', {}, 'NBD server not running');
    await client.fail('nbd-server-add', { device: 'm' }, 'NBD server not running');
    await client.succeed('nbd-server-start', unixServer());
    await client.fail('nbd-server-start', unixServer(), 'NBD server already running');
    await client.fail('block-export-add', nbdExport({ bitmaps: ['b'] }), "Bitmap 'b' is not found");
    await client.fail(
      'block-export-add',
      nbdExport({ 'allocation-depth': true }),
      'allocation-depth=on is not supported',
    );
    await client.fail(
      'block-export-add',
      nbdExport({ name: 'x'.repeat(4097) }),
      `export name '${'x'.repeat(4097)}' too long`,
    );
    await client.succeed('block-export-add', nbdExport());
    await client.fail('block-export-add', nbdExport({ id: 'f' }), "NBD server already has export named 'm'");
    await client.fail('blockdev-del', { 'node-name': 'm' }, 'Node m is in use');
  });

  it('is not served at all where TLS was asked for by objects that do not do', async () => {
    await client.succeed('object-add', { 'qom-type': 'iothread', id: 'io0' });
    const tls = (creds: string, authz?: string) => ({
      ...unixServer(),
      'tls-creds': creds,
      ...(authz === undefined ? {} : { 'tls-authz': authz }),
    });
    await client.fail('nbd-server-start', tls('tls0'), "No TLS credentials with id 'tls0'");
    await client.fail('nbd-server-start', tls('io0'), "Object with id 'io0' is not TLS credentials");
    await client.fail(
      'nbd-server-start',
      { ...unixServer(), 'tls-authz': 'a' },
      'tls-authz without tls-creds would let everybody in',
    );
    writeFileSync(join(directory, 'keys.psk'), `qemu:${'ab'.repeat(32)}\n`);
    const psk = (id: string, endpoint: string) => ({
      'qom-type': 'tls-creds-psk',
      id,
      dir: directory,
      endpoint,
    });
    await client.succeed('object-add', psk('client', 'client'));
    await client.succeed('object-add', psk('server', 'server'));
    await client.fail('nbd-server-start', tls('client'), 'Expected TLS credentials for a server endpoint');
    await client.fail(
      'nbd-server-start',
      tls('server', 'a'),
      'these TLS credentials tell no name that could be authorized',
    );
    await client.fail('nbd-server-stop', {}, 'NBD server not running');
    await client.succeed('nbd-server-start', tls('server'));
    await client.succeed('block-export-add', nbdExport());
    const nbd = await RawClient.connect({ type: 'unix', path: socketPath });
    nbdClients.push(nbd);
    await nbd.greet();
    assert.equal((await nbd.option(3))[0].type, 0x8000_0005);
  });

  it('ends only hard while clients use it', async () => {
    await client.succeed('nbd-server-start', unixServer());
    await client.succeed('block-export-add', nbdExport());
    const nbd = await connect('m');
    await client.fail('block-export-del', { id: 'e' }, "export 'e' still in use");
    client.send(JSON.stringify({ execute: 'block-export-del', arguments: { id: 'e', mode: 'hard' } }));
    assert.equal((await client.read())['event'], 'BLOCK_EXPORT_DELETED');
    assert.deepEqual(await client.read(), { return: {} });
    assert.equal((await nbd.readToEnd()).length, 0);
    assert.deepEqual(await client.succeed('query-block-exports'), []);
    await client.succeed('blockdev-del', { 'node-name': 'm' });
  });

  it('ends with its server, and comes again with the next', async () => {
    for (let round = 0; round < 2; round++) {
      await client.succeed('nbd-server-start', unixServer());
      await client.succeed('nbd-server-add', { device: 'm', name: 'old', writable: true });
      const nbd = await connect('old');
      assert.equal((await nbd.call({ type: Command.READ, offset: 0, length: 512 })).errno, 0);
      client.send('{"execute": "nbd-server-stop"}');
      assert.deepEqual((await client.read())['data'], { id: 'old' });
      assert.deepEqual(await client.read(), { return: {} });
    }
  });

  it('goes by the older commands, too', async () => {
    await client.succeed('blockdev-add', { driver: 'null-co', 'node-name': 'ro', 'read-only': true });
    await client.succeed('nbd-server-start', {
      addr: { type: 'inet', data: { host: '127.0.0.1', port: '0' } },
    });
    await client.fail('nbd-server-add', { device: 'zz' }, "Cannot find device='zz' nor node-name='zz'");
    await client.fail('nbd-server-add', { device: 'm', bitmap: 'b' }, "Bitmap 'b' is not found");
    await client.succeed('nbd-server-add', { device: 'ro', writable: true });
    assert.deepEqual(await client.succeed('query-block-exports'), [
      { id: 'ro', type: 'nbd', 'node-name': 'ro', 'shutting-down': false },
    ]);
    await client.fail('nbd-server-remove', { name: 'zz' }, "Export 'zz' is not found");
    client.send('{"execute": "nbd-server-remove", "arguments": {"name": "ro"}}');
    assert.equal((await client.read())['event'], 'BLOCK_EXPORT_DELETED');
    assert.deepEqual(await client.read(), { return: {} });
  });

  it('listens at an abstract address', async () => {
    const path = `vduse-test-${process.pid}`;
    await client.succeed('nbd-server-start', { addr: { type: 'unix', data: { path, abstract: true } } });
    await client.succeed('block-export-add', nbdExport());
    const nbd = new RawClient(new Socket({ fd: connectUnix(`@${path}`) }));
    nbdClients.push(nbd);
    await nbd.greet();
    await nbd.go({ name: 'm' });
    assert.equal(nbd.size, sizeBytes);
  });

  it('counts how long requests take while it is asked to', async () => {
    await client.succeed('nbd-server-start', unixServer());
    await client.succeed('block-export-add', nbdExport());
    const nbd = await connect('m');
    const read = () => nbd.call({ type: Command.READ, offset: 0, length: 4096 });
    const stats = async (): Promise<Message> => {
      const [first] = (await client.succeed('query-blockstats')) as { qdev: string; stats: Message }[];
      assert.equal(first.qdev, 'e');
      return first.stats;
    };
    await read();
    assert.equal((await stats())['rd_latency_histogram'], undefined);
    assert.equal((await stats())['rd_total_time_ns'], 0);
    await client.succeed('block-latency-histogram-set', { id: 'e', 'boundaries-read': [1000, 1e9, 1e10] });
    for (let n = 0; n < 5; n++) {
      await read();
    }
    const timed = await stats();
    const { boundaries, bins } = timed['rd_latency_histogram'] as { boundaries: number[]; bins: number[] };
    assert.deepEqual(boundaries, [1000, 1e9, 1e10]);
    assert.equal(bins.length, 4);
    assert.equal(
      bins.reduce((sum, bin) => sum + bin),
      5,
    );
    assert.equal(timed['rd_operations'], 6);
    assert.equal(timed['rd_bytes'], 6 * 4096);
    assert.equal(timed['wr_latency_histogram'], undefined);
    await client.succeed('block-latency-histogram-set', { id: 'e', boundaries: [10] });
    assert.deepEqual((await stats())['flush_latency_histogram'], { boundaries: [10], bins: [0, 0] });
    await client.fail(
      'block-latency-histogram-set',
      { id: 'e', boundaries: [10, 10] },
      "Device 'e' set read boundaries fail",
    );
    await client.succeed('block-latency-histogram-set', { id: 'e' });
    assert.equal((await stats())['rd_latency_histogram'], undefined);
    assert.deepEqual(await client.execute('block-latency-histogram-set', { id: 'zz' }), {
      error: { class: 'DeviceNotFound', desc: "Device 'zz' not found" },
    });
  });
});
