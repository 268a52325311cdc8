/** The transport with a front-end that behaves: what QEMU, libblkio and others do to a back-end, and more of it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { silentLogger } from '../../../src/base/log.js';
import { BLK_S } from '../../../src/device/blk/blk-protocol.js';
import { Errno } from '../../../src/native/errno.js';
import { closeFd, createEventFd, readFd } from '../../../src/native/fd.js';
import { UnixListener } from '../../../src/native/unix-socket.js';
import { VhostUserFrontend } from '../../../src/transport/vhost-user/frontend.js';
import { FrontendRequest, ProtocolFeature } from '../../../src/transport/vhost-user/protocol.js';
import { VhostUserTransport } from '../../../src/transport/vhost-user/vhost-user-transport.js';
import { localNode, memoryNode } from '../../support/blk.js';
import { makeTestPool } from '../../support/leftovers.js';
import { MemoryDisk } from '../../support/memory-disk.js';
import { Random } from '../../support/random.js';
import { mapCount, openFdCount } from '../../support/resources.js';
import { type Remote, startRemote } from '../../support/vhost-user-client.js';
import { type Served, serveVhostUser } from '../../support/vhost-user-setup.js';
import { until, within } from '../../support/within.js';

const hosts = makeTestPool({ size: 2 });
const random = new Random(7);

async function serve(options: { queueCount?: number; disk?: MemoryDisk; drainTimeoutMs?: number } = {}) {
  const { disk, ...rest } = options;
  const node = disk === undefined ? await memoryNode(4 << 20) : localNode(disk);
  const served = await serveVhostUser({ node, hosts, ...rest });
  return {
    ...served,
    node,
    async close() {
      await served.close();
      await node.close();
    },
  };
}

/** Writes, and reads it back through every queue. */
async function exercise(remote: Remote, offset = 4096): Promise<void> {
  const bytes = random.bytes(12 << 10);
  assert.equal((await remote.client.write(offset, bytes)).status, BLK_S.OK);
  for (const { index } of remote.frontEnd.queues) {
    const read = await within(10_000, `an answer on queue ${index}`, () =>
      remote.client.read(offset, bytes.length, index),
    );
    assert.equal(read.status, BLK_S.OK);
    assert.deepEqual(Buffer.from(read.data), Buffer.from(bytes));
  }
}

/** Requests one after the other until it is stopped. */
function keepBusy(remote: Remote): { stop(): Promise<number> } {
  let stopped = false;
  const loops = remote.frontEnd.queues.map(async ({ index }) => {
    let done = 0;
    while (!stopped) {
      const { status } = await remote.client.read(0, 4096, index);
      assert.equal(status, BLK_S.OK);
      done++;
    }
    return done;
  });
  return {
    async stop() {
      stopped = true;
      return (await Promise.all(loops)).reduce((sum, done) => sum + done, 0);
    },
  };
}

test('a front-end reads and writes through its shared memory, and nothing of it is left', async () => {
  const served = await serve({ queueCount: 2 });
  const fds = openFdCount();
  const maps = mapCount('memfd:front-end');
  for (const memory of ['table', 'regions'] as const) {
    const remote = await startRemote(served.path, { memory });
    assert.equal(remote.device.queueCount, 2);
    await exercise(remote);
    await remote.close();
  }
  await until('the end of the session', () => !served.transport.connected);
  const left = { fds: openFdCount(), maps: mapCount('memfd:front-end') };
  await served.close();
  assert.deepEqual(left, { fds, maps });
});

test('front-ends without acknowledgements, without protocol features beyond them, without enabling', async () => {
  const served = await serve();
  for (const protocolFeatures of [0n, 1n << BigInt(ProtocolFeature.REPLY_ACK)]) {
    const remote = await startRemote(served.path, { protocolFeatures });
    await exercise(remote);
    await remote.close();
  }
  const remote = await startRemote(served.path, { neverEnables: true });
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('a front-end that vanishes with requests in flight, and comes back', async () => {
  const disk = new MemoryDisk({ size: 1 << 20 });
  const served = await serve({ disk });
  let open = (): void => {};
  for (let turn = 0; turn < 3; turn++) {
    const remote = await startRemote(served.path);
    disk.gate = new Promise((resolve) => {
      open = resolve;
    });
    void remote.client.read(0, 4096);
    await until('the request', () => disk.count('read') > turn * 2);
    remote.vanish();
    setTimeout(open, 20);
    const next = await startRemote(served.path);
    disk.gate = undefined;
    assert.equal((await next.client.read(0, 4096)).status, BLK_S.OK);
    await next.close();
  }
  await served.close();
});

test('a second front-end waits until the first has gone', async () => {
  const served = await serve();
  const first = await startRemote(served.path);
  let connected = false;
  const second = startRemote(served.path).then((remote) => {
    connected = true;
    return remote;
  });
  await exercise(first);
  await sleep(30);
  assert.equal(connected, false);
  await first.close();
  const remote = await second;
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('one ring stops and goes on, the others do not notice', async () => {
  const served = await serve({ queueCount: 2 });
  const remote = await startRemote(served.path);
  const { frontend } = remote.device;
  for (let n = 0; n < 5; n++) {
    await remote.client.read(0, 4096, 0);
  }
  const availIndex = await frontend.stopVring(0);
  assert.equal(availIndex, 5);
  const pending = remote.client.read(0, 4096, 0);
  assert.equal((await remote.client.read(0, 4096, 1)).status, BLK_S.OK);
  assert.equal(remote.frontEnd.queues[0].inFlight, 1);
  // A stopped ring goes on where it was when its kick comes again.
  await frontend.setKick(0, remote.frontEnd.queues[0].kickFd);
  assert.equal((await pending).status, BLK_S.OK);
  await frontend.enableVring(0, false);
  const disabled = remote.client.read(0, 4096, 0);
  assert.equal((await remote.client.read(0, 4096, 1)).status, BLK_S.OK);
  assert.equal(remote.frontEnd.queues[0].inFlight, 1);
  await frontend.enableVring(0, true);
  assert.equal((await disabled).status, BLK_S.OK);
  await remote.close();
  await served.close();
});

test('memory changes while rings run: a region comes and goes, the table is replaced', async () => {
  const served = await serve({ queueCount: 2 });
  const remote = await startRemote(served.path, { memory: 'regions' });
  const { frontend } = remote.device;
  const busy = keepBusy(remote);
  const extra = { ...remote.device.regions()[0], guestAddress: 2 ** 50, userAddress: 2 ** 51 };
  for (let turn = 0; turn < 10; turn++) {
    await frontend.addMemory(extra);
    await frontend.removeMemory(extra);
    await frontend.setMemoryTable([...remote.device.regions(), extra]);
    await frontend.setMemoryTable(remote.device.regions());
  }
  assert.ok((await busy.stop()) > 0);
  await remote.close();
  await served.close();
});

test('a queue that runs uses a region as soon as its addition is acknowledged', async () => {
  const served = await serve();
  const remote = await startRemote(served.path, { memory: 'rings-only' });
  for (let turn = 0; turn < 20; turn++) {
    for (const region of remote.device.regions().slice(1)) {
      await remote.device.frontend.addMemory(region);
    }
    await exercise(remote);
    for (const region of remote.device.regions().slice(1)) {
      await remote.device.frontend.removeMemory(region);
    }
  }
  await remote.close();
  await served.close();
});

test('call descriptors change, go and come back while the ring runs', async () => {
  const served = await serve();
  const remote = await startRemote(served.path);
  const { frontend } = remote.device;
  const [queue] = remote.frontEnd.queues;
  const other = createEventFd();
  for (let turn = 0; turn < 3; turn++) {
    await frontend.setCall(0, undefined);
    const unheard = remote.client.read(0, 4096);
    await sleep(10);
    await frontend.setCall(0, other);
    await frontend.setCall(0, queue.callFd);
    queue.pollUsed();
    assert.equal((await unheard).status, BLK_S.OK);
    await exercise(remote);
  }
  closeFd(other);
  await remote.close();
  await served.close();
});

test('a front-end that polls: no call descriptor, no kick descriptor', async () => {
  const served = await serve();
  const remote = await startRemote(served.path, { withoutKick: true });
  await exercise(remote);
  await remote.device.frontend.setCall(0, undefined);
  const polled = remote.client.read(0, 4096);
  const timer = setInterval(() => remote.frontEnd.queues[0].pollUsed(), 1);
  assert.equal((await polled).status, BLK_S.OK);
  clearInterval(timer);
  await remote.close();
  await served.close();
});

test('configuration space: parts, what lies behind it, and writing is refused', async () => {
  const served = await serve();
  const remote = await startRemote(served.path);
  const { frontend } = remote.device;
  const config = await frontend.getConfig(0, 256);
  assert.deepEqual(Buffer.from(config.subarray(0, 60)), Buffer.from(served.device.config));
  assert.ok(config.subarray(60).every((byte) => byte === 0));
  assert.deepEqual(Buffer.from(await frontend.getConfig(20, 4)), Buffer.from(config.subarray(20, 24)));
  const write = new Uint8Array(13);
  new DataView(write.buffer).setUint32(0, 32, true);
  new DataView(write.buffer).setUint32(4, 1, true);
  await assert.rejects(frontend.send(FrontendRequest.SET_CONFIG, write), { code: 'PROTOCOL' });
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('a resize reaches the front-end', async () => {
  const served = await serve();
  const remote = await startRemote(served.path);
  const { frontend } = remote.device;
  let changes = 0;
  await frontend.onConfigChange(() => changes++);
  const capacity = async () =>
    new DataView((await frontend.getConfig(0, 8)).slice().buffer).getUint32(0, true);
  assert.equal(await capacity(), (4 << 20) / 512);
  await served.node.resize(8 << 20);
  served.device.resized();
  await until('the notification', () => changes === 1);
  assert.equal(await capacity(), (8 << 20) / 512);
  assert.equal((await remote.client.read(6 << 20, 4096)).status, BLK_S.OK);
  await remote.close();
  // Nobody there: nothing to tell.
  await until('the end of the session', () => !served.transport.connected);
  served.device.resized();
  await served.close();
});

test('status and reset: rings stop, the memory stays', async () => {
  const served = await serve();
  const remote = await startRemote(served.path, { memory: 'regions' });
  const { frontend } = remote.device;
  assert.equal(await frontend.getMemorySlots(), 509);
  await frontend.setStatus(15);
  assert.equal(await frontend.getStatus(), 15);
  for (const reset of [() => frontend.setStatus(0), () => frontend.resetDevice()]) {
    await exercise(remote);
    await reset();
    assert.equal(await frontend.getStatus(), 0);
    remote.device.forget();
    await remote.frontEnd.restart();
  }
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('a driver that names memory outside of the regions stops its ring, not its connection', async () => {
  const served = await serve({ queueCount: 2 });
  const remote = await startRemote(served.path);
  const { frontend } = remote.device;
  const errors = [createEventFd(), createEventFd()];
  for (const [index, fd] of errors.entries()) {
    await frontend.setError(index, fd);
  }
  const counts = () => errors.map((fd) => readFd(fd, new Uint8Array(8)));
  assert.deepEqual(counts(), [-Errno.EAGAIN, -Errno.EAGAIN]);
  remote.frontEnd.queues[0].submitRaw([{ address: 2 ** 51, length: 16 }]);
  await within(10_000, 'DEVICE_NEEDS_RESET', async () => {
    while (((await frontend.getStatus()) & 64) === 0) {
      await sleep(1);
    }
  });
  assert.deepEqual(counts(), [8, -Errno.EAGAIN], "the broken ring's descriptor alone is signalled");
  errors.forEach(closeFd);
  assert.equal((await remote.client.read(0, 4096, 1)).status, BLK_S.OK);
  await frontend.setStatus(0);
  assert.equal(await frontend.getStatus(), 0);
  remote.device.forget();
  await remote.frontEnd.restart();
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('a front-end that begins again on its connection adds its memory anew', async () => {
  const served = await serve();
  const remote = await startRemote(served.path, { memory: 'regions' });
  await exercise(remote);
  await remote.device.begin();
  await remote.frontEnd.restart();
  await exercise(remote);
  await remote.close();
  await served.close();
});

test('rings of 4 to 32768 elements', async () => {
  const served = await serve();
  for (const queueSize of [4, 128, 1024, 32768]) {
    const remote = await startRemote(served.path, { queueSize });
    await exercise(remote);
    await remote.close();
  }
  await served.close();
});

test('a back-end that connects finds its front-end whenever that listens', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'vduse-vhost-user-'));
  const path = join(directory, 'socket');
  const served = await serve();
  const address = { type: 'unix', path, server: false } as const;
  const transport = new VhostUserTransport({
    device: served.device,
    logger: silentLogger,
    name: 'x',
    address,
  });
  await sleep(20);
  const listener = new UnixListener(path);
  let fd: number | undefined;
  await until('the connection', () => {
    fd = listener.accept();
    return fd !== undefined;
  });
  const frontend = new VhostUserFrontend(fd!);
  assert.equal(await frontend.getQueueCount(), 1);
  frontend.close();
  await transport.close();
  listener.close();
  await served.close();
  rmSync(directory, { recursive: true });
});

test('a descriptor that listens already is served; others are refused', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'vduse-vhost-user-'));
  const path = join(directory, 'socket');
  const served = await serve();
  const base = { device: served.device, logger: silentLogger, name: 'x' };
  const listener = new UnixListener(path);
  const transport = new VhostUserTransport({ ...base, address: { type: 'fd', fd: listener.fd } });
  const remote = await startRemote(path);
  await exercise(remote);
  await remote.close();
  await transport.close();
  const eventFd = createEventFd();
  for (const fd of [eventFd, 1_000_000]) {
    assert.throws(() => new VhostUserTransport({ ...base, address: { type: 'fd', fd } }), {
      code: 'INVALID_ARGUMENT',
    });
  }
  closeFd(eventFd);
  await served.close();
  rmSync(directory, { recursive: true });
});

test('a back-end that does not end a request: its time is up, and the next front-end is served', async () => {
  const disk = new MemoryDisk({ size: 1 << 20 });
  const served: Served & { close(): Promise<void> } = await serve({ disk, drainTimeoutMs: 100 });
  const remote = await startRemote(served.path);
  disk.gate = new Promise(() => {});
  void remote.client.read(0, 4096);
  await until('the request', () => disk.count('read') === 1);
  await assert.rejects(remote.device.frontend.stopVring(0), { code: 'PROTOCOL' });
  remote.vanish();
  disk.gate = undefined;
  const next = await startRemote(served.path);
  assert.equal((await next.client.read(0, 4096)).status, BLK_S.OK);
  await next.close();
  await served.close();
});
