/** Front-ends that break the rules: each loses its connection, nothing of it is left, and nobody else notices. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import type { BlockNode } from '../../../src/block/node.js';
import { BLK_S } from '../../../src/device/blk/blk-protocol.js';
import { closeFd, createEventFd } from '../../../src/native/fd.js';
import { createMemoryFile, pageSize } from '../../../src/native/memory.js';
import { socketPair } from '../../../src/native/unix-socket.js';
import { encodeMessage } from '../../../src/transport/vhost-user/message-stream.js';
import {
  FrontendRequest as F,
  PROTOCOL_FEATURES_BIT,
  payloadBytesMax,
} from '../../../src/transport/vhost-user/protocol.js';
import { memoryNode } from '../../support/blk.js';
import { makeTestPool } from '../../support/leftovers.js';
import { scaled, testRandom } from '../../support/random.js';
import { mapCount, openFdCount } from '../../support/resources.js';
import { RawClient, type RawMessage, type Remote, startRemote } from '../../support/vhost-user-client.js';
import { type Served, serveVhostUser, userOffset } from '../../support/vhost-user-setup.js';
import { until, within } from '../../support/within.js';

const memoryName = 'hostile-front-end';
const memoryBytes = 16 * pageSize;
const guestStart = 0x1000_0000;
const userStart = guestStart + userOffset;
const hosts = makeTestPool({ size: 2 });
const nodes: BlockNode[] = [];
let served: Served;
let good: Remote;
let goodServed: Served;
let memory = -1;
let kick = -1;
let file = -1;

async function serve(): Promise<Served> {
  const node = await memoryNode(1 << 20);
  nodes.push(node);
  return serveVhostUser({ node, hosts, queueCount: 2 });
}

before(async () => {
  memory = createMemoryFile(memoryName, memoryBytes);
  kick = createEventFd();
  file = createMemoryFile('no-eventfd', 4096);
  served = await serve();
  goodServed = await serve();
  good = await startRemote(goodServed.path);
});

after(async () => {
  await good.close();
  await served.close();
  await goodServed.close();
  for (const node of nodes) {
    await node.close();
  }
  for (const fd of [memory, kick, file]) {
    closeFd(fd);
  }
});

const u64 = (value: bigint) => new Uint8Array(new BigUint64Array([value]).buffer);
const state = (index: number, number: number) => new Uint8Array(new Uint32Array([index, number]).buffer);
const region = (guest: bigint, length: bigint, user: bigint, offset: bigint) =>
  new Uint8Array(new BigUint64Array([guest, length, user, offset]).buffer);
const table = (...regions: Uint8Array[]) => Buffer.concat([state(regions.length, 0), ...regions]);
const single = (one: Uint8Array) => Buffer.concat([u64(0n), one]);
const whole = region(BigInt(guestStart), BigInt(memoryBytes), BigInt(userStart), 0n);
const addresses = (index: number, at: number) =>
  Buffer.concat([
    state(index, 0),
    u64(BigInt(at)),
    u64(BigInt(at + 2 * pageSize)),
    u64(BigInt(at + pageSize)),
    u64(0n),
  ]);
const VERSION_1 = 1n << 32n;
const protocolFeatures = 1n << BigInt(PROTOCOL_FEATURES_BIT);

/** What makes ring 0 ready to start. */
const prepared = (): RawMessage[] => [
  { request: F.SET_OWNER },
  { request: F.SET_FEATURES, payload: u64(VERSION_1 | protocolFeatures) },
  { request: F.SET_MEM_TABLE, payload: table(whole), fds: [memory] },
  { request: F.SET_VRING_NUM, payload: state(0, 16) },
  { request: F.SET_VRING_BASE, payload: state(0, 0) },
  { request: F.SET_VRING_ADDR, payload: addresses(0, userStart) },
];
const started = (): RawMessage[] => [
  ...prepared(),
  { request: F.SET_VRING_CALL, payload: u64(0n), fds: [kick] },
  { request: F.SET_VRING_KICK, payload: u64(0n), fds: [kick] },
  { request: F.SET_VRING_ENABLE, payload: state(0, 1) },
];

interface Attack {
  readonly name: string;
  readonly messages: () => RawMessage[];
}

const attacks: Attack[] = [
  {
    name: 'features that were never offered',
    messages: () => [{ request: F.SET_FEATURES, payload: u64(1n << 26n) }],
  },
  {
    name: 'protocol features that were never offered',
    messages: () => [{ request: F.SET_PROTOCOL_FEATURES, payload: u64(2n) }],
  },
  { name: 'a request that is not known', messages: () => [{ request: 99, payload: u64(0n), fds: [kick] }] },
  { name: 'a log', messages: () => [{ request: 6, payload: u64(0n), fds: [memory] }] },
  {
    name: 'descriptors where none belong',
    messages: () => [{ request: F.GET_FEATURES, fds: [memory, kick, file] }],
  },
  {
    name: 'more descriptors than regions',
    messages: () => [{ request: F.SET_MEM_TABLE, payload: table(whole), fds: [memory, kick] }],
  },
  {
    name: 'fewer descriptors than regions',
    messages: () => [{ request: F.SET_MEM_TABLE, payload: table(whole, whole), fds: [memory] }],
  },
  {
    name: 'as many descriptors as fit',
    messages: () => [{ request: F.SET_OWNER, fds: new Array<number>(253).fill(kick) }],
  },
  {
    name: 'a file that is shorter than its region',
    messages: () => [
      { request: F.ADD_MEM_REG, payload: single(region(0n, BigInt(memoryBytes), 0n, 1n)), fds: [memory] },
    ],
  },
  {
    name: 'memory that is no file',
    messages: () => [{ request: F.ADD_MEM_REG, payload: single(region(0n, 8n, 0n, 0n)), fds: [kick] }],
  },
  {
    name: 'regions that overlap',
    messages: () => [{ request: F.SET_MEM_TABLE, payload: table(whole, whole), fds: [memory, memory] }],
  },
  {
    name: 'the removal of what is not there',
    messages: () => [{ request: F.REM_MEM_REG, payload: single(whole) }],
  },
  ...[0, 3, 65535].map((size) => ({
    name: `a ring of ${size}`,
    messages: () => [{ request: F.SET_VRING_NUM, payload: state(0, size) }],
  })),
  {
    name: 'a ring that the device does not have',
    messages: () => [{ request: F.SET_VRING_NUM, payload: state(2, 16) }],
  },
  {
    name: 'the kick of a ring that the device does not have',
    messages: () => [{ request: F.SET_VRING_KICK, payload: u64(200n), fds: [kick] }],
  },
  {
    name: 'a kick that is no eventfd',
    messages: () => [...prepared(), { request: F.SET_VRING_KICK, payload: u64(0n), fds: [file] }],
  },
  {
    name: 'an error descriptor that is no eventfd',
    messages: () => [...started(), { request: F.SET_VRING_ERR, payload: u64(0n), fds: [file] }],
  },
  {
    name: 'a ring without size and addresses',
    messages: () => [
      ...prepared(),
      { request: F.SET_VRING_KICK, payload: u64(1n), fds: [kick] },
      { request: F.SET_VRING_ENABLE, payload: state(1, 1) },
    ],
  },
  ...[
    ['below the memory', userStart - 4096],
    ['behind the memory', userStart + memoryBytes],
    ['across its end', userStart + memoryBytes - 2 * pageSize],
    ['not aligned', userStart + 8],
    ['at the end of all addresses', Number.MAX_SAFE_INTEGER - 2 * pageSize],
  ].map(([where, at]) => ({
    name: `a ring ${where}`,
    messages: () => [
      ...prepared(),
      { request: F.SET_VRING_ADDR, payload: addresses(0, at as number) },
      { request: F.SET_VRING_KICK, payload: u64(0n), fds: [kick] },
      { request: F.SET_VRING_ENABLE, payload: state(0, 1) },
    ],
  })),
  {
    name: 'a driver without VERSION_1',
    messages: () => [
      ...prepared(),
      { request: F.SET_FEATURES, payload: u64(protocolFeatures) },
      { request: F.SET_VRING_KICK, payload: u64(0n), fds: [kick] },
      { request: F.SET_VRING_ENABLE, payload: state(0, 1) },
    ],
  },
  {
    name: 'a memory table without the rings, while they run',
    messages: () => [...started(), { request: F.SET_MEM_TABLE, payload: table() }],
  },
  {
    name: 'the removal of the memory with the rings, while they run',
    messages: () => [...started(), { request: F.REM_MEM_REG, payload: single(whole) }],
  },
  {
    name: 'another ring size while it runs',
    messages: () => [...started(), { request: F.SET_VRING_NUM, payload: state(0, 32) }],
  },
  {
    name: 'another available index while it runs',
    messages: () => [...started(), { request: F.SET_VRING_BASE, payload: state(0, 5) }],
  },
  {
    name: 'other addresses while it runs',
    messages: () => [
      ...started(),
      { request: F.SET_VRING_ADDR, payload: addresses(0, userStart + 4 * pageSize) },
    ],
  },
  {
    name: 'other features while it runs',
    messages: () => [...started(), { request: F.SET_FEATURES, payload: u64(VERSION_1 | (1n << 28n)) }],
  },
];

/** A connection that the back-end has accepted. */
async function connectRaw(): Promise<RawClient> {
  await until('the end of the session', () => !served.transport.connected);
  const raw = new RawClient(served.path);
  await until('the session', () => served.transport.connected);
  return raw;
}

/** Whoever behaves is served, here and on the other export, and no descriptor or map is left. */
async function checkNothingIsLeft(fds: number): Promise<void> {
  await until('the end of the session', () => !served.transport.connected);
  assert.equal(openFdCount(), fds);
  assert.equal(mapCount(memoryName), 0);
  assert.equal((await good.client.read(0, 4096)).status, BLK_S.OK);
}

for (const attack of attacks) {
  test(attack.name, async () => {
    const fds = openFdCount();
    const raw = await connectRaw();
    for (const message of attack.messages()) {
      raw.send(message);
    }
    await raw.ended();
    raw.close();
    await checkNothingIsLeft(fds);
  });
}

test('every message cut short, and descriptors in the middle of one', async () => {
  const fds = openFdCount();
  for (const message of started()) {
    const bytes = encodeMessage({
      request: message.request,
      flags: 1,
      payload: message.payload ?? new Uint8Array(0),
    });
    for (const length of [1, 11, bytes.length - 1]) {
      const raw = await connectRaw();
      raw.sendBytes(bytes.subarray(0, length), message.fds ?? []);
      raw.close();
    }
  }
  const raw = await connectRaw();
  raw.sendBytes(encodeMessage({ request: F.GET_FEATURES, flags: 1 }).subarray(0, 4));
  raw.sendBytes(encodeMessage({ request: F.GET_FEATURES, flags: 1 }).subarray(4), [kick]);
  await raw.ended();
  raw.close();
  await checkNothingIsLeft(fds);
});

test('a message that says that it is longer than any', async () => {
  const fds = openFdCount();
  for (const size of [payloadBytesMax + 1, 2 ** 31, 2 ** 32 - 1]) {
    const raw = await connectRaw();
    const header = encodeMessage({ request: F.SET_MEM_TABLE, flags: 1 });
    new DataView(header.buffer).setUint32(8, size, true);
    raw.sendBytes(header, [memory]);
    await raw.ended();
    raw.close();
  }
  await checkNothingIsLeft(fds);
});

test('questions without end whose answers nobody reads', async () => {
  const fds = openFdCount();
  const raw = await connectRaw();
  const question = {
    request: F.GET_CONFIG,
    payload: Buffer.concat([state(0, 256), new Uint8Array(4 + 256)]),
  };
  await assert.rejects(
    within(10_000, 'the end of the connection', async () => {
      for (;;) {
        raw.send(question);
        await setImmediate();
      }
    }),
    { code: 'SYSTEM_CALL' },
  );
  raw.close();
  await checkNothingIsLeft(fds);
});

test('a channel for changes that is no socket, or that nobody reads', async () => {
  const fds = openFdCount();
  for (const [own, passed] of [[-1, file], socketPair()]) {
    const raw = await connectRaw();
    raw.send({ request: F.SET_BACKEND_REQ_FD, fds: [passed] });
    raw.send({ request: F.GET_FEATURES });
    for (let n = 0; n < 10_000; n++) {
      served.device.resized();
    }
    raw.close();
    await until('the end of the session', () => !served.transport.connected);
    if (own >= 0) {
      closeFd(own);
      closeFd(passed);
    }
  }
  await checkNothingIsLeft(fds);
});

test('any messages in any order, with any descriptors', async (t) => {
  const random = testRandom();
  t.diagnostic(`seed ${random.seed}`);
  const fds = openFdCount();
  const requests = Object.values(F);
  for (let round = 0; round < scaled(150); round++) {
    const raw = await connectRaw();
    const valid = started();
    try {
      for (let step = 0; step < 20; step++) {
        const message = random.oneIn(3) ? undefined : valid[step % valid.length];
        if (message !== undefined && !random.oneIn(8)) {
          raw.send(message);
          continue;
        }
        const payload = message?.payload?.slice() ?? random.bytes(random.pick([0, 8, 12, 40, 72]));
        if (payload.length > 0 && random.oneIn(2)) {
          payload[random.between(0, payload.length - 1)] = random.next();
        }
        raw.send({
          request: message?.request ?? random.pick(requests),
          payload,
          fds: random.oneIn(2) ? (message?.fds ?? []) : [random.pick([kick, memory, file])],
          flags: random.oneIn(10) ? random.between(0, 15) : 1,
        });
      }
    } catch {
      // The back-end has had enough.
    }
    raw.close();
  }
  await checkNothingIsLeft(fds);
});

test('after all that a front-end that behaves is served', async () => {
  const remote = await startRemote(served.path);
  assert.equal((await remote.client.read(0, 4096)).status, BLK_S.OK);
  await remote.close();
});
