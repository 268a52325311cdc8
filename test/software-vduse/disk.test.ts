/** The disk in software: what is copied, what waits, and how it ends. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Errno } from '../../src/native/errno.js';
import { encodeDeviceName, VduseIoctl } from '../../src/native/vduse-abi.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { localNode, memoryNode } from '../support/blk.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { isMapped, mapCount, openFdCount } from '../support/resources.js';
import { SoftwareDisk } from '../support/software-disk.js';
import { isVduseError } from '../support/vduse-error.js';

const hosts = new QueueThreadPool({ size: 2 });
after(() => hosts.close());

const MiB = 1 << 20;

function pattern(length: number): Uint8Array {
  return new Uint8Array(length).map((_, at) => (at * 31 + (at >>> 8)) & 0xff);
}

test('payload is copied once through the bounce region, and never where memory is shared', async () => {
  const node = await memoryNode(8 * MiB);
  const disk = await SoftwareDisk.start({ node, hosts, device: { queueCount: 2 } });
  const { frontend } = disk;
  const copied = async (work: () => Promise<unknown>): Promise<number> => {
    const before = frontend.domain.bytesCopied;
    await work();
    return frontend.domain.bytesCopied - before;
  };
  for (const length of [512, 1024, 4096, 4608, 65536, MiB, MiB + 512, 3 * MiB]) {
    const data = pattern(length);
    const found = new Uint8Array(length);
    assert.equal(await copied(() => frontend.write(512, data)), length, `write of ${length}`);
    assert.equal(await copied(() => frontend.read(512, found)), length, `read of ${length}`);
    assert.deepEqual(found, data);
    const shared = frontend.allocateSharedBuffer(length);
    assert.equal(await copied(() => frontend.read(512, shared.bytes)), 0, `direct read of ${length}`);
    assert.deepEqual(Buffer.from(shared.bytes).equals(data), true);
    shared.bytes.fill(7);
    assert.equal(await copied(() => frontend.write(512, shared.bytes)), 0, `direct write of ${length}`);
    await frontend.read(512, found);
    assert(found.every((byte) => byte === 7));
    await frontend.removeSharedBuffer(shared);
  }
  assert.equal(await copied(() => frontend.flush()), 0);
  assert.equal(await copied(() => frontend.discard(0, MiB)), 0);
  assert.equal(await copied(() => frontend.writeZeroes(0, MiB, { unmap: false })), 0);
  assert.equal(await copied(() => frontend.getId()), 20);
  const short = 8 * MiB - 512;
  assert.equal(await copied(() => assert.rejects(frontend.read(short, new Uint8Array(1024)))), 0);
  await disk.close();
  await node.close();
});

test('shared memory is unmapped on both sides when it is given back', async () => {
  const node = await memoryNode(MiB);
  const disk = await SoftwareDisk.start({ node, hosts });
  const { frontend } = disk;
  await frontend.write(0, pattern(4096));
  const before = { fds: openFdCount(), maps: mapCount('vduse-shared') };
  for (let n = 0; n < 20; n++) {
    const shared = frontend.allocateSharedBuffer(8192);
    await frontend.read(0, shared.bytes.subarray(0, 4096));
    assert.equal(shared.bytes[1], pattern(2)[1]);
    assert.equal(mapCount('vduse-shared'), before.maps + 2, 'ours and the device’s');
    const { hostAddress } = shared.memory;
    assert(isMapped(hostAddress));
    await frontend.removeSharedBuffer(shared);
    assert.deepEqual({ fds: openFdCount(), maps: mapCount('vduse-shared') }, before);
  }
  await disk.close();
  await node.close();
});

for (const queueSize of [8, 256]) {
  test(`requests wait for bounce space, on queues of ${queueSize}`, { timeout: 20_000 }, async () => {
    const node = await memoryNode(8 * MiB);
    const kernel = { bounceBytes: MiB };
    const disk = await SoftwareDisk.start({ node, hosts, kernel, device: { queueCount: 3, queueSize } });
    const { frontend } = disk;
    const data = pattern(8 * MiB);
    // Each is longer than the whole region, and the first ones take all of it.
    const parts = Array.from({ length: 4 }, (_, n) => data.subarray(n * 2 * MiB, (n + 1) * 2 * MiB));
    await Promise.all(parts.map((part, n) => frontend.write(n * 2 * MiB, part)));
    const found = new Uint8Array(8 * MiB);
    await Promise.all(
      Array.from({ length: 2048 }, (_, n) =>
        frontend.read(n * 4096, found.subarray(n * 4096, (n + 1) * 4096)),
      ),
    );
    assert(Buffer.from(found).equals(data));
    // All space is one queue's: the next queue's request has nobody in flight to wait for.
    for (let round = 0; round < 40; round++) {
      const large = frontend.read(0, new Uint8Array(MiB));
      const small = Array.from({ length: round % 5 }, () => frontend.read(0, new Uint8Array(300 * 1024)));
      await Promise.all([large, ...small]);
    }
    assert.equal(frontend.inFlight, 0);
    await disk.close();
    await node.close();
  });
}

test('only whole sectors are asked for', async () => {
  const node = await memoryNode(MiB);
  const disk = await SoftwareDisk.start({ node, hosts });
  const { frontend } = disk;
  const invalid = isVduseError('INVALID_ARGUMENT');
  const data = new Uint8Array(1024);
  for (const offset of [1, 511, 513, -512, Number.NaN, 2 ** 60, 0.5]) {
    await assert.rejects(frontend.write(offset, data), invalid, `${offset}`);
    await assert.rejects(frontend.read(offset, data), invalid, `${offset}`);
    await assert.rejects(frontend.discard(offset, 512), invalid, `${offset}`);
    await assert.rejects(frontend.writeZeroes(offset, 512, { unmap: true }), invalid, `${offset}`);
  }
  await assert.rejects(frontend.write(0, data.subarray(1)), invalid);
  await assert.rejects(frontend.discard(0, 100), invalid);
  await disk.close();
  await node.close();
});

test('a removal waits for requests, and refuses new ones', async () => {
  const memory = new MemoryDisk({ size: MiB });
  const disk = await SoftwareDisk.start({ node: localNode(memory), hosts });
  const { frontend } = disk;
  let open = (): void => {};
  memory.gate = new Promise((resolve) => {
    open = resolve;
  });
  let ended = false;
  const slow = frontend.write(0, pattern(4096)).then(() => {
    ended = true;
  });
  const detached = disk.transport.detach();
  await sleep(50);
  await assert.rejects(frontend.read(0, new Uint8Array(512)), { code: 'ABORTED' });
  assert.equal(ended, false);
  open();
  await detached;
  await slow;
  assert(Buffer.from(memory.bytes.subarray(0, 4096)).equals(pattern(4096)));
  await disk.close();
});

test('without its process a device breaks, and what waits fails, in its time', async () => {
  const before = openFdCount();
  const node = await memoryNode(MiB);
  const disk = await SoftwareDisk.start({ node, hosts, kernel: { messageTimeoutMs: 250 } });
  const { frontend, kernel, name } = disk;
  await disk.leave();
  const lost = [frontend.read(0, new Uint8Array(512)), frontend.flush()];
  const rejections = Promise.all(lost.map((request) => assert.rejects(request, { errno: Errno.ENODEV })));
  const started = performance.now();
  await kernel.removeFromBus(name);
  const took = performance.now() - started;
  // Once for the requests, once for the reset.
  assert(took > 400 && took < 3000, `${took} ms`);
  await rejections;
  assert.equal(kernel.isOnBus(name), false);
  const fd = kernel.openDevice(name);
  assert.equal(kernel.ioctl(fd, VduseIoctl.VQ_GET_INFO, new Uint8Array(48)), -Errno.EPERM);
  kernel.close(fd);
  const control = kernel.openControl();
  assert.equal(kernel.ioctl(control, VduseIoctl.DESTROY_DEV, encodeDeviceName(name)), 0);
  kernel.close(control);
  assert.deepEqual(kernel.deviceNames, []);
  await node.close();
  assert.equal(openFdCount(), before);
  assert.equal(mapCount('vduse-domain'), 0);
});

test('arguments shorter than they say are refused, and nothing behind them is read', () => {
  const kernel = new SoftwareVduse();
  const control = kernel.openControl();
  for (const [request, bytes] of [
    [VduseIoctl.GET_API_VERSION, 7],
    [VduseIoctl.SET_API_VERSION, 0],
    [VduseIoctl.CREATE_DEV, 335],
    [VduseIoctl.DESTROY_DEV, 255],
  ]) {
    assert.equal(kernel.ioctl(control, request, new Uint8Array(bytes)), -Errno.EFAULT);
  }
  assert.equal(kernel.ioctl(12345678, VduseIoctl.GET_API_VERSION, new Uint8Array(8)), -Errno.EBADF);
  assert.equal(kernel.read(12345678, new Uint8Array(152)), -Errno.EBADF);
  assert.equal(kernel.write(12345678, new Uint8Array(152)), -Errno.EBADF);
  kernel.close(control);
  assert.equal(kernel.ioctl(control, VduseIoctl.GET_API_VERSION, new Uint8Array(8)), -Errno.EBADF);
});
