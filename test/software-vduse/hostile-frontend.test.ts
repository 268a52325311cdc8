/** The driver's side attacks the device, end to end: nothing crashes, hangs, or is touched that is not its own. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { createLogger, type Logger } from '../../src/base/log.js';
import type { BlockNode } from '../../src/block/node.js';
import { BlkDevice } from '../../src/device/blk/blk-device.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VhostVdpa } from '../../src/software-vduse/vhost-vdpa.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import { VduseTransport } from '../../src/transport/vduse/vduse-transport.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { memoryNode } from '../support/blk.js';
import { scaled, testRandom } from '../support/random.js';
import {
  type Attack,
  type Descriptor,
  dataAddress,
  F,
  HostileFrontend,
  headerAddress,
  readOnly,
  regionA,
  regionB,
  ringSize,
  statusAddress,
  writeOnly,
} from './hostile-frontend.js';

const unmapped = 0x7000_0000;
const last = regionB.start + regionB.length - 1;
const hosts = new QueueThreadPool({ size: 2 });
const virtio = new VirtioVdpa();
const vhost = new VhostVdpa();
/** The bad driver's device goes to it, the other one to a driver that behaves. */
const busOf = (name: string) => (name === 'bad' ? vhost : virtio);
const kernel = new SoftwareVduse({
  busDriver: {
    probe: (device) => busOf(device.name).probe(device),
    remove: (device) => busOf(device.name).remove(device),
  },
});
const nodes: BlockNode[] = [];
const transports: VduseTransport[] = [];
let frontend: HostileFrontend;
/** How often the device has said that its driver broke the rules. */
let complaints = 0;

function listeningLogger(): Logger {
  const logger = createLogger({ level: 'silent' });
  logger.error = () => {
    complaints++;
  };
  return logger;
}

async function serve(name: string, logger: Logger): Promise<void> {
  const node = await memoryNode(1 << 20);
  nodes.push(node);
  const options = { node, hosts, logger, writable: true, queueCount: 2, queueSize: ringSize, serial: name };
  const transport = await VduseTransport.create({
    name,
    device: await BlkDevice.create(options),
    logger,
    kernel,
  });
  transports.push(transport);
  await transport.attach();
}

before(async () => {
  await serve('bad', listeningLogger());
  await serve('good', createLogger({ level: 'silent' }));
  const device = vhost.device('bad');
  assert(device !== undefined);
  frontend = new HostileFrontend(device);
});

after(async () => {
  for (const transport of transports) {
    await transport.detach();
    await transport.close();
  }
  frontend.close();
  await Promise.all(nodes.map((node) => node.close()));
  await hosts.close();
});

/** Everybody else goes on. */
async function checkOthers(): Promise<void> {
  frontend.checkBorders();
  assert.equal(await frontend.useOtherQueue(), 'bad');
  const disk = virtio.disk('good');
  assert(disk !== undefined);
  const data = new Uint8Array(4096).fill(complaints);
  const found = new Uint8Array(4096);
  await disk.write(0, data);
  await disk.read(0, found);
  assert.deepEqual(found, data);
  frontend.checkBorders();
}

/** Waits until the device has answered or has said what it thinks of its driver. */
async function outcome(statusAt: number, complaintsBefore: number): Promise<string> {
  for (let n = 0; n < 300; n++) {
    if (complaints !== complaintsBefore) {
      return 'broken';
    }
    if (frontend.usedIndex(0) !== 0) {
      const status = frontend.status(statusAt);
      return status === undefined ? 'used' : `status ${status}`;
    }
    await sleep(n < 20 ? 1 : 10);
  }
  return 'nothing';
}

const header: Descriptor = { address: headerAddress, length: 16, flags: F.NEXT };
const status: Descriptor = { address: statusAddress, length: 1, flags: F.WRITE };
const into = (address: number | bigint, length: number): Descriptor => ({
  address,
  length,
  flags: F.NEXT | F.WRITE,
});
const from = (address: number | bigint, length: number): Descriptor => ({ address, length, flags: F.NEXT });
const data = into(dataAddress, 512);
const good = [header, data, status];

interface Case extends Attack {
  readonly expected: string;
  readonly statusAt?: number;
}

const cases: Record<string, Case> = {
  'a good request': { descriptors: good, expected: 'status 0' },
  'a descriptor that follows itself': { descriptors: [{ ...header, next: 0 }], expected: 'broken' },
  'two that follow each other': {
    descriptors: [header, { ...data, next: 0 }],
    expected: 'broken',
  },
  'a next beyond the table': { descriptors: [{ ...header, next: ringSize }], expected: 'broken' },
  'a next of 65535': { descriptors: [{ ...header, next: 0xffff }], expected: 'broken' },
  'a head beyond the table': { descriptors: good, heads: [ringSize], expected: 'broken' },
  'a head of 65535': { descriptors: good, heads: [0xffff], expected: 'broken' },
  'a head twice': { descriptors: good, heads: [0, 0], expected: 'broken' },
  'an index that jumps': { descriptors: good, advance: ringSize + 1, expected: 'broken' },
  'an index that jumps far': { descriptors: good, advance: 0x8000, expected: 'broken' },
  'an index that goes back': { descriptors: good, advance: 0xffff, expected: 'broken' },
  'an unmapped header': { descriptors: [from(unmapped, 16), data, status], expected: 'broken' },
  'an unmapped buffer': { descriptors: [header, into(unmapped, 512), status], expected: 'broken' },
  'an unmapped status': { descriptors: [header, data, { ...status, address: unmapped }], expected: 'broken' },
  'an address of 2^64 - 1': { descriptors: [header, into(2n ** 64n - 1n, 512), status], expected: 'broken' },
  'an address of 2^53': { descriptors: [header, into(2n ** 53n, 512), status], expected: 'broken' },
  'an address of 0': { descriptors: [header, into(0, 512), status], expected: 'broken' },
  'a buffer before the first region': {
    descriptors: [header, into(regionA.start - 1, 512), status],
    expected: 'broken',
  },
  'a buffer beyond the last byte': {
    descriptors: [header, into(last - 510, 512), status],
    expected: 'broken',
  },
  'a length of 2^32 - 1': {
    descriptors: [header, into(dataAddress, 0xffff_ffff), status],
    expected: 'broken',
  },
  'a buffer in memory to be read': {
    descriptors: [header, into(readOnly.start, 512), status],
    expected: 'broken',
  },
  'a header in memory to be written': {
    descriptors: [from(writeOnly.start, 16), data, status],
    expected: 'broken',
  },
  'a buffer of no length': { descriptors: [header, into(dataAddress, 0), status], expected: 'status 0' },
  'a status of no length': { descriptors: [header, data, { ...status, length: 0 }], expected: 'used' },
  'no status': { descriptors: [header, { ...data, flags: F.WRITE, length: 0 }], expected: 'broken' },
  'no header': { descriptors: [status], expected: 'broken' },
  'a short header': { descriptors: [{ ...header, length: 15 }, data, status], expected: 'broken' },
  'a header to be written': {
    descriptors: [{ ...header, flags: F.NEXT | F.WRITE }, data, status],
    expected: 'broken',
  },
  'readable behind writable': { descriptors: [data, header, status], expected: 'broken' },
  'one descriptor that is only readable': { descriptors: [{ ...header, flags: 0 }], expected: 'broken' },
  'a length that is no sector': {
    descriptors: [header, into(dataAddress, 511), status],
    expected: 'status 1',
  },
  'the last byte of a region': {
    descriptors: [header, data, { ...status, address: last }],
    statusAt: last,
    expected: 'status 0',
  },
  'a buffer across two regions': {
    descriptors: [header, into(regionB.start - 256, 512), status],
    expected: 'status 0',
  },
  'a buffer to the last byte': { descriptors: [header, into(last - 511, 512), status], expected: 'status 0' },
  'a sector beyond the end': { descriptors: good, sector: 2048n, expected: 'status 1' },
  'a sector of 2^63': { descriptors: good, sector: 1n << 63n, expected: 'status 1' },
  'a sector of 2^64 - 1': { descriptors: good, sector: (1n << 64n) - 1n, expected: 'status 1' },
  'an unknown type': { descriptors: good, type: 0x7777, expected: 'status 2' },
  'a discard of no range': { descriptors: [header, status], type: 11, expected: 'status 1' },
  'a discard of half a range': {
    descriptors: [header, from(dataAddress, 8), status],
    type: 11,
    expected: 'status 1',
  },
  'a discard of everything and more': {
    descriptors: [header, from(dataAddress, 16), status],
    type: 11,
    table: [{ address: 0, length: 0xffff_ffff, flags: 0, next: 0 }],
    expected: 'status 1',
  },
  'an indirect table': {
    descriptors: [{ address: dataAddress, length: 48, flags: F.INDIRECT }],
    table: [header, into(dataAddress + 512, 512), status],
    expected: 'status 0',
  },
  'an indirect table in one': {
    descriptors: [{ address: dataAddress, length: 48, flags: F.INDIRECT }],
    table: [{ address: dataAddress, length: 48, flags: F.INDIRECT }],
    expected: 'broken',
  },
  'an indirect table of no length': {
    descriptors: [{ address: dataAddress, length: 0, flags: F.INDIRECT }],
    expected: 'broken',
  },
  'an indirect table of half an entry': {
    descriptors: [{ address: dataAddress, length: 40, flags: F.INDIRECT }],
    expected: 'broken',
  },
  'an indirect table that is not mapped': {
    descriptors: [{ address: unmapped, length: 48, flags: F.INDIRECT }],
    expected: 'broken',
  },
  'an indirect table of 4 GiB': {
    descriptors: [{ address: dataAddress, length: 0xffff_fff0, flags: F.INDIRECT }],
    expected: 'broken',
  },
  'a loop in an indirect table': {
    descriptors: [{ address: dataAddress, length: 48, flags: F.INDIRECT }],
    table: [{ ...header, next: 0 }],
    expected: 'broken',
  },
};

for (const [name, attack] of Object.entries(cases)) {
  test(name, async () => {
    await frontend.start();
    const complaintsBefore = complaints;
    frontend.attack(attack);
    assert.equal(await outcome(attack.statusAt ?? statusAddress, complaintsBefore), attack.expected);
    await checkOthers();
  });
}

const rings = {
  'an unmapped descriptor table': { descriptorAddress: unmapped },
  'an unmapped available ring': { driverAddress: unmapped },
  'an unmapped used ring': { deviceAddress: unmapped },
  'a table that ends beyond its region': { descriptorAddress: last + 1 - 16 },
  'a used ring that ends beyond its region': { deviceAddress: regionB.start + regionB.length - 4 },
  'a used ring to be read': { deviceAddress: readOnly.start },
  'an odd descriptor table': { descriptorAddress: regionA.start + 1 },
  'an odd used ring': { deviceAddress: regionA.start + 0x2001 },
  'a ring at address 2^53': { descriptorAddress: 2 ** 53 },
  'a size of 0': { size: 0 },
  'a size of 3': { size: 3 },
  'a size of 65536': { size: 65536 },
};

for (const [name, queue] of Object.entries(rings)) {
  test(name, async () => {
    const refused = await frontend.start(queue).then(
      () => false,
      () => true,
    );
    assert(refused, 'the device took rings that it cannot use');
    frontend.checkBorders();
    await frontend.start();
    await checkOthers();
  });
}

test('random tables', { timeout: 60_000 }, async (t) => {
  const random = testRandom();
  t.diagnostic(`VDUSE_SEED=${random.seed}`);
  const places = [
    headerAddress,
    statusAddress,
    dataAddress,
    regionB.start - 1,
    regionB.start,
    last,
    last + 1,
  ];
  const others = [
    readOnly.start,
    writeOnly.start,
    unmapped,
    0,
    2n ** 53n - 1n,
    2n ** 64n - 1n,
    regionA.start,
  ];
  const lengths = [0, 1, 15, 16, 32, 48, 511, 512, 4096, 0x1388, 0x10000, 0xffff_ffff];
  const runs = scaled(250);
  const results: Record<string, number> = {};
  for (let run = 0; run < runs; run++) {
    await frontend.start();
    const descriptor = (): Descriptor => ({
      address: random.pick(random.oneIn(4) ? others : places),
      length: random.pick(lengths),
      flags: random.oneIn(12) ? random.next() & 0xffff : random.pick([0, 1, 1, 1, 2, 3, 3, 4]),
      next: random.oneIn(8) ? random.next() & 0xffff : random.between(0, ringSize - 1),
    });
    // A table that overlaps the rings would be an attack on the driver itself.
    const outside = (entry: Descriptor): Descriptor =>
      entry.address === regionA.start ? { ...entry, flags: entry.flags & ~F.WRITE } : entry;
    const table = Array.from({ length: ringSize }, () => outside(descriptor()));
    // Mostly a good request with one thing wrong: what is all wrong gets no further than its first descriptor.
    if (!random.oneIn(4)) {
      table.splice(0, 3, ...good.map((entry, n) => ({ ...entry, next: n + 1 })));
      const at = random.between(0, 2);
      const wrong = outside(descriptor());
      const field = random.pick(['address', 'length', 'flags', 'next', 'none'] as const);
      if (field !== 'none') {
        table[at] = outside({ ...table[at], [field]: wrong[field] });
      }
    }
    const heads = random.oneIn(3)
      ? Array.from({ length: random.between(1, 4) }, () => random.between(0, ringSize))
      : [0];
    const before = complaints;
    frontend.attack({
      descriptors: table,
      heads,
      type: random.pick([0, 1, 4, 8, 11, 13, 99]),
      sector: random.pick([0n, 1n, 2047n, 1n << 55n]),
    });
    const result = await outcome(statusAddress, before);
    assert.notEqual(result, 'nothing', `run ${run}`);
    results[result] = (results[result] ?? 0) + 1;
    frontend.checkBorders();
    if (run % 10 === 0) {
      await checkOthers();
    }
  }
  t.diagnostic(JSON.stringify(results));
});
