/** A driver of vhost-vdpa whose memory file is cut under a running queue: the queue stops, the process goes on. */
import assert from 'node:assert/strict';
import { ftruncateSync } from 'node:fs';
import { test } from 'node:test';
import { pino } from 'pino';
import { BlkDevice } from '../../../src/device/blk/blk-device.js';
import { closeFd, createEventFd } from '../../../src/native/fd.js';
import { createMemoryFile, pageSize } from '../../../src/native/memory.js';
import { VduseTransport } from '../../../src/transport/vduse/vduse-transport.js';
import { memoryNode } from '../../support/blk.js';
import { FakeVduse } from '../../support/fake-vduse-kernel.js';
import type { FrontEnd } from '../../support/front-end.js';
import { makeTestPool } from '../../support/leftovers.js';
import { mappedBytes } from '../../support/mapped.js';
import { until } from '../../support/within.js';

const hosts = makeTestPool({ size: 1 });
const memoryName = 'cut-vdpa-memory';
const memoryBytes = 16 * pageSize;
const start = 0x1000_0000;

/** A driver that maps nothing itself: it would be the first to meet its own cut. */
function driverOf(memory: number) {
  const callFd = createEventFd();
  const queue = {
    index: 0,
    size: 16,
    callFd,
    kick: () => {},
    place: { descriptorAddress: start, driverAddress: start + pageSize, deviceAddress: start + 2 * pageSize },
  };
  const region = { start, length: memoryBytes };
  return {
    features: 1n << 32n,
    queues: [queue],
    memory: { regions: [region], file: memory, fileOffset: () => 0 },
    close: () => closeFd(callFd),
  };
}

test('the queue stops with a reason, and the next driver is served', async () => {
  const lines: string[] = [];
  const logger = pino({ level: 'warn' }, { write: (line: string) => lines.push(line) });
  const node = await memoryNode(1 << 20);
  const device = await BlkDevice.create({ node, hosts, logger, writable: true, queueSize: 16 });
  const kernel = new FakeVduse();
  const memory = createMemoryFile(memoryName, memoryBytes);
  const driver = driverOf(memory);
  kernel.connect(driver as unknown as FrontEnd);
  const transport = await VduseTransport.create({ name: 'disk', device, logger, kernel });

  assert.ok((await kernel.bringUp()).ok);
  assert.equal(mappedBytes(`memfd:${memoryName}`), memoryBytes);
  ftruncateSync(memory, 0);
  driver.queues[0].kick();
  await until('the stop', () => !transport.active && mappedBytes(`memfd:${memoryName}`) === 0);
  const messages = lines.map((line) => (JSON.parse(line) as { msg: string }).msg);
  assert.match(
    messages.at(-1)!,
    /^'disk': the queues stop until the driver resets them: the \d+ bytes of memory at 0x10000000: their file was cut/,
  );

  ftruncateSync(memory, memoryBytes);
  assert.ok((await kernel.bringUp()).ok);
  assert.equal(transport.active, true);
  await transport.close();
  await node.close();
  driver.close();
  closeFd(memory);
});
