/** Throttle groups: what they let through, in whose order, on all threads together. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { ThrottleGroup } from '../../src/block/throttle-group.js';
import { createCommands } from '../../src/daemon/commands/commands.js';
import { toThrottleLimits } from '../../src/daemon/options/throttle-options.js';
import type { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import type { BlkFrontend } from '../../src/software-vduse/blk-frontend.js';
import { DaemonDisks } from '../support/daemon-disk.js';

const MiB = 1 << 20;
let disks: DaemonDisks;
let daemon: StorageDaemon;

beforeEach(() => {
  disks = new DaemonDisks();
  daemon = disks.daemon;
});

afterEach(() => disks.close());

function group(limits: Record<string, number>): ThrottleGroup {
  const made = new ThrottleGroup();
  made.configure(toThrottleLimits({ limits }));
  return made;
}

/** What as many requests at once have to wait, in milliseconds. */
const waits = (made: ThrottleGroup, count: number, isWrite = false, length = 4096): number[] =>
  Array.from({ length: count }, () => made.reserve(isWrite, length));

/** Between what would be right if no time had passed, and a second less. */
function assertWait(actual: number, ideal: number): void {
  assert.ok(actual <= ideal && actual > ideal - 1000, `${actual} ms instead of ${ideal}`);
}

describe('a throttle group', () => {
  test("lets a tenth of a second's operations go at once, then each in its time", () => {
    const all = waits(group({ 'iops-total': 100 }), 411);
    assert.ok(all.slice(0, 11).every((wait) => wait === 0));
    assertWait(all[410], 4000);
  });

  test('counts bytes, reads and writes, each on its own or together', () => {
    assertWait(waits(group({ 'bps-total': MiB }), 101, true, MiB / 10).at(-1)!, 9900);
    const reads = group({ 'iops-read': 10 });
    assert.ok(waits(reads, 100, true).every((wait) => wait === 0));
    assertWait(waits(reads, 52).at(-1)!, 5000);
    const both = group({ 'iops-read': 10, 'bps-write': MiB });
    assertWait(waits(both, 52).at(-1)!, 5000);
    assertWait(waits(both, 6, true, MiB).at(-1)!, 4900);
  });

  test('counts long requests as several, where it has a size for one', () => {
    assertWait(waits(group({ 'iops-total': 10, 'iops-size': 4096 }), 3, false, 40_960).at(-1)!, 1900);
    assert.equal(waits(group({ 'iops-total': 10, 'iops-size': 4096 }), 2, false, 512).at(-1), 0);
  });

  test('lets a burst through, and a long one at its own rate', () => {
    const burst = waits(group({ 'iops-total': 10, 'iops-total-max': 100 }), 151);
    assert.ok(burst.slice(0, 101).every((wait) => wait === 0));
    assertWait(burst[150], 5000);
    const long = waits(group({ 'iops-total': 10, 'iops-total-max': 100, 'iops-total-max-length': 5 }), 551);
    assertWait(long[310], 3000);
    assertWait(long[550], 5400);
  });
});

/** How many requests end in that time, with eight at once. */
async function countRequests(disk: BlkFrontend, ms: number): Promise<number> {
  const end = performance.now() + ms;
  let count = 0;
  const buffer = new Uint8Array(4096);
  await Promise.all(
    Array.from({ length: 8 }, async (_, worker) => {
      while (performance.now() < end) {
        await disk.read(worker * 4096, buffer);
        count++;
      }
    }),
  );
  return count;
}

async function throttled(nodeName: string): Promise<void> {
  const file = { driver: 'null-co', size: MiB } as const;
  await daemon.addNode({ driver: 'throttle', nodeName, throttleGroup: 'g', file });
}

const limits = (values: Record<string, number>) => toThrottleLimits({ limits: values });

describe('a throttle node', () => {
  test('holds all queues of all members together to the limits', async () => {
    await daemon.addObject({ type: 'throttle-group', id: 'g', limits: limits({ 'iops-total': 200 }) });
    await throttled('a');
    await throttled('b');
    const members = [await disks.export('a', { queueCount: 2 }), await disks.export('b')];
    const start = performance.now();
    const counts = await Promise.all(members.map((disk) => countRequests(disk, 500)));
    const took = (performance.now() - start) / 1000;
    const total = counts[0] + counts[1];
    assert.ok(total <= 200 * took + 20 + 2, `${total} requests in ${took} s`);
    assert.ok(
      counts.every((count) => count >= 8),
      `${counts}: everybody has a share`,
    );
    await assert.rejects(daemon.deleteObject('g'), { message: "object 'g' is in use, can not be deleted" });
  });

  test('holds up nobody who changes what is below', async () => {
    await daemon.addObject({ type: 'throttle-group', id: 'g', limits: limits({ 'bps-total': 1 }) });
    await daemon.addObject({ type: 'throttle-group', id: 'fast', limits: limits({}) });
    await throttled('a');
    const disk = await disks.export('a');
    const buffers = Array.from({ length: 16 }, () => new Uint8Array(4096));
    const reads = buffers.map((buffer, n) => disk.read(n * 4096, buffer));
    const options = { driver: 'throttle', nodeName: 'a', throttleGroup: 'fast' } as const;
    await daemon.addNode({ driver: 'null-co', nodeName: 'other', size: MiB });
    await daemon.reopenNodes([{ ...options, file: 'other' }]);
    await Promise.all(reads);
    await daemon.deleteObject('g');
    assert.ok((await countRequests(disk, 50)) > 0);
  });

  test('lets go at once what waited, when qom-set takes the limits away', async () => {
    const commands = createCommands(daemon);
    await daemon.addObject({
      type: 'throttle-group',
      id: 'g',
      limits: limits({ 'bps-total': 1, 'iops-size': 0 }),
    });
    await throttled('a');
    const disk = await disks.export('a');
    const buffers = Array.from({ length: 16 }, () => new Uint8Array(4096));
    const reads = buffers.map((buffer, n) => disk.read(n * 4096, buffer));
    const where = { path: '/objects/g', property: 'limits' };
    // What is not named stays.
    await commands.execute('qom-set', { ...where, value: { 'iops-read': 1e9 } });
    assert.equal(((await commands.execute('qom-get', where)) as Record<string, number>)['bps-total'], 1);
    await commands.execute('qom-set', { ...where, value: { 'bps-total': 0 } });
    await Promise.all(reads);
    await assert.rejects(commands.execute('qom-set', { ...where, value: { 'bps-total': -1 } }), {
      message: 'bps/iops/max values must be within [0, 1000000000000000]',
    });
    await assert.rejects(commands.execute('qom-set', { ...where, property: 'x-bps-total', value: 1 }), {
      message: 'Property cannot be set after initialization',
    });
    assert.ok((await countRequests(disk, 50)) > 0);
  });

  test('needs its group', async () => {
    await assert.rejects(throttled('a'), { code: 'NOT_FOUND', message: "Throttle group 'g' does not exist" });
    assert.deepEqual(daemon.nodes, []);
  });
});
