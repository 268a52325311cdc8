/** The life of a device's queues: starts that fail halfway, stops, memory that grows. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pino } from 'pino';
import { silentLogger } from '../../src/base/log.js';
import { openBlockNode } from '../../src/block/open.js';
import { BlkDevice, type BlkDeviceOptions } from '../../src/device/blk/blk-device.js';
import type { Activation } from '../../src/device/virtio-device.js';
import { ControlledHosts } from '../support/controlled-hosts.js';

async function create(hosts: ControlledHosts, options: Partial<BlkDeviceOptions> = {}): Promise<BlkDevice> {
  const node = await openBlockNode({ driver: 'null-co', nodeName: 'nothing' });
  return BlkDevice.create({ node, hosts, logger: silentLogger, writable: true, queueCount: 3, ...options });
}

const activation: Activation = {
  features: 0n,
  memory: [],
  queues: [0, 1, 2].map((index) => ({
    index,
    size: 4,
    descriptorAddress: 0,
    driverAddress: 0,
    deviceAddress: 0,
    availIndex: 10 + index,
    kickFd: -1,
    notifier: { kind: 'none' },
  })),
};

test('each queue runs on its host, with its number and an id of its own', async () => {
  const hosts = new ControlledHosts();
  const device = await create(hosts, { threads: [{ name: 'a' }, { name: 'b' }] });
  assert.deepEqual(hosts.asked, [[{ name: 'a' }, { name: 'b' }]]);
  await device.activate(activation);
  const ids = hosts.hosts.flatMap((host, n) =>
    [...host.running].map(([id, { spec }]) => {
      assert.equal(spec.queue.index, n);
      assert.equal(spec.queue.availIndex, 10 + n);
      return id;
    }),
  );
  assert.equal(new Set(ids).size, 3);
});

test('an activation that fails has waited for every start, so that a stop reaches what runs', async () => {
  for (const failing of [0, 1, 2]) {
    const hosts = new ControlledHosts();
    const device = await create(hosts);
    hosts.hosts.forEach((host, n) => {
      host.onStart = async (): Promise<void> => {
        if (n === failing) {
          throw new Error(`queue ${n} can't be`);
        }
        // The others take their time: they are on other threads.
        await sleep(5 * n);
      };
    });
    await assert.rejects(device.activate(activation), { message: `queue ${failing} can't be` });
    // Whoever is told stops the device and unmaps the guest's memory: no queue may run from then on.
    await device.quiesce({ timeoutMs: 1 });
    await sleep(20);
    assert.deepEqual(
      hosts.hosts.map((host) => host.running.size),
      [0, 0, 0],
    );
    hosts.hosts.forEach((host) => {
      host.onStart = () => Promise.resolve();
    });
    await device.activate(activation);
    assert.equal((await device.quiesce({ timeoutMs: 1 })).drained, true);
  }
});

test('a stop waits for every queue, and is drained when all are', async () => {
  const hosts = new ControlledHosts();
  const device = await create(hosts);
  await device.activate(activation);
  const timeouts: number[] = [];
  hosts.hosts.forEach((host, n) => {
    host.onStop = async (_id, timeoutMs) => {
      timeouts.push(timeoutMs);
      await sleep(5 * (3 - n));
      return { drained: n !== 1, availIndex: 100 + n };
    };
  });
  const result = await device.quiesce({ timeoutMs: 77 });
  assert.deepEqual(timeouts, [77, 77, 77]);
  assert.equal(result.drained, false);
  assert.deepEqual(
    [...result.availIndices],
    [
      [0, 100],
      [1, 101],
      [2, 102],
    ],
  );
  // Stopped: a second stop has nothing to do.
  assert.deepEqual(await device.quiesce({ timeoutMs: 1 }), { drained: true, availIndices: new Map() });
});

test('what queues report reaches the transport and the log', async () => {
  const lines: { msg: string; count: number; errno: string; queue: number }[] = [];
  const hosts = new ControlledHosts();
  const logger = pino({ base: null }, { write: (line: string) => void lines.push(JSON.parse(line)) });
  const device = await create(hosts, { logger });
  const told: string[] = [];
  device.setListener({
    onConfigChange: () => told.push('config'),
    onNeedsReset: (reason, queue) => told.push(`reset of ${queue}: ${reason}`),
    onMemoryMiss: () => told.push('miss'),
  });
  await device.activate(activation);
  const [{ listener }] = [...hosts.hosts[1].running.values()];
  listener.onBroken('queue 1: why');
  listener.onMemoryMiss();
  listener.onErrors(1, { operation: 'read', errno: 5 });
  listener.onErrors(12, { operation: 'write', errno: 28 });
  assert.deepEqual(told, ['reset of 1: queue 1: why', 'miss']);
  assert.match(lines[0].msg, /^1 I\/O error on 'nothing': .*\(EIO\)$/);
  assert.match(lines[1].msg, /^12 I\/O errors on 'nothing': .*\(ENOSPC\)$/);
  assert.deepEqual([lines[1].count, lines[1].errno, lines[1].queue], [12, 'ENOSPC', 1]);
  device.setListener(undefined);
  listener.onMemoryMiss();
  assert.equal(told.length, 2);
});

test('memory that grows reaches every queue that runs', async () => {
  const hosts = new ControlledHosts();
  const device = await create(hosts);
  device.updateMemory([]);
  assert.ok(hosts.hosts.every((host) => host.updates.length === 0));
  await device.activate(activation);
  device.updateMemory([]);
  for (const host of hosts.hosts) {
    assert.deepEqual(
      host.updates,
      [...host.running.keys()].map((id) => ({ id, update: { regions: [], answersMiss: false } })),
    );
  }
  const [, { running }] = hosts.hosts;
  device.setListener({ onConfigChange() {}, onNeedsReset() {}, onMemoryMiss: () => device.updateMemory([]) });
  for (const { listener } of running.values()) {
    listener.onMemoryMiss();
  }
  assert.deepEqual(
    hosts.hosts.map((host) => host.updates.slice(1).map(({ update }) => update.answersMiss)),
    [[false], [true], [false]],
  );
});

test('some queues stop and start again, the others run on', async () => {
  const hosts = new ControlledHosts();
  const device = await create(hosts);
  await device.activate(activation);
  const running = (): number[] => hosts.hosts.flatMap((host, n) => (host.running.size > 0 ? [n] : []));
  const { drained, availIndices } = await device.quiesce({ timeoutMs: 100, queues: [1, 2] });
  assert.ok(drained);
  assert.deepEqual([...availIndices.keys()], [1, 2]);
  assert.deepEqual(running(), [0]);
  await device.activate({ ...activation, queues: activation.queues.slice(1, 2) });
  assert.deepEqual(running(), [0, 1]);
  const rest = await device.quiesce({ timeoutMs: 100 });
  assert.deepEqual([...rest.availIndices.keys()], [0, 1]);
  assert.deepEqual(running(), []);
});
