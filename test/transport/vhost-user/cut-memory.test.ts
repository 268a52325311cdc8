/** A front-end that cuts its memory's file under a running ring loses its connection; the process and the others go on. */
import assert from 'node:assert/strict';
import { ftruncateSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { pino } from 'pino';
import { BLK_S } from '../../../src/device/blk/blk-protocol.js';
import { closeFd, createEventFd, signalEventFd } from '../../../src/native/fd.js';
import { createMemoryFile, pageSize } from '../../../src/native/memory.js';
import { FrontendRequest as F, PROTOCOL_FEATURES_BIT } from '../../../src/transport/vhost-user/protocol.js';
import { memoryNode } from '../../support/blk.js';
import { makeTestPool } from '../../support/leftovers.js';
import { mapCount } from '../../support/resources.js';
import { RawClient, startRemote } from '../../support/vhost-user-client.js';
import { serveVhostUser } from '../../support/vhost-user-setup.js';
import { until } from '../../support/within.js';

// One thread for both devices: the one that the front-end's memory would have killed is the other's too.
const hosts = makeTestPool({ size: 1 });
const memoryName = 'cut-memory';
const memoryBytes = 16 * pageSize;
const start = 0x1000_0000;

const u64 = (...values: bigint[]) => new Uint8Array(new BigUint64Array(values).buffer);
const state = (index: number, number: number) => new Uint8Array(new Uint32Array([index, number]).buffer);

const place = { available: pageSize, used: 2 * pageSize, header: 4 * pageSize, status: 5 * pageSize };
const BLK_T_FLUSH = 4;

/** Writes a flush into the file, as its front-end would: two descriptors, the header and the status (virtio 2.7.5). */
function makeFlushAvailable(memory: number): void {
  const descriptors = new DataView(new ArrayBuffer(32));
  for (const [n, [at, length, flags]] of [
    [start + place.header, 16, 1],
    [start + place.status, 1, 2],
  ].entries()) {
    descriptors.setBigUint64(n * 16, BigInt(at), true);
    descriptors.setUint32(n * 16 + 8, length, true);
    descriptors.setUint16(n * 16 + 12, flags, true);
    descriptors.setUint16(n * 16 + 14, 1, true);
  }
  writeSync(memory, descriptors, 0, 32, 0);
  writeSync(memory, Uint32Array.of(BLK_T_FLUSH), 0, 4, place.header);
  writeSync(memory, Uint16Array.of(0, 1, 0), 0, 6, place.available);
}

function usedIndex(memory: number): number {
  const words = new Uint16Array(2);
  readSync(memory, words, 0, 4, place.used);
  return words[1];
}

/** Starts ring 0 in the file. */
function startRing(raw: RawClient, memory: number, kick: number): void {
  const at = BigInt(start);
  const region = u64(at, BigInt(memoryBytes), at, 0n);
  const places = u64(at, at + BigInt(place.used), at + BigInt(place.available), 0n);
  const features = (1n << 32n) | (1n << BigInt(PROTOCOL_FEATURES_BIT));
  raw.send({ request: F.SET_OWNER });
  raw.send({ request: F.SET_FEATURES, payload: u64(features) });
  raw.send({ request: F.SET_MEM_TABLE, payload: Buffer.concat([state(1, 0), region]), fds: [memory] });
  raw.send({ request: F.SET_VRING_NUM, payload: state(0, 16) });
  raw.send({ request: F.SET_VRING_BASE, payload: state(0, 0) });
  raw.send({ request: F.SET_VRING_ADDR, payload: Buffer.concat([state(0, 0), places]) });
  raw.send({ request: F.SET_VRING_KICK, payload: u64(0n), fds: [kick] });
  raw.send({ request: F.SET_VRING_ENABLE, payload: state(0, 1) });
}

test('the connection ends with a reason, and another front-end on the same thread goes on', async () => {
  const lines: string[] = [];
  const logger = pino({ level: 'warn' }, { write: (line: string) => lines.push(line) });
  const nodes = [await memoryNode(1 << 20), await memoryNode(1 << 20)];
  const served = await serveVhostUser({ node: nodes[0], hosts, logger });
  const others = await serveVhostUser({ node: nodes[1], hosts });
  const other = await startRemote(others.path);
  const memory = createMemoryFile(memoryName, memoryBytes);
  const kick = createEventFd();

  const raw = new RawClient(served.path);
  makeFlushAvailable(memory);
  startRing(raw, memory, kick);
  await until('the flush', () => usedIndex(memory) === 1);
  ftruncateSync(memory, 0);
  signalEventFd(kick);
  await raw.ended();
  raw.close();
  assert.equal((await other.client.read(0, 4096)).status, BLK_S.OK);
  const messages = lines.map((line) => (JSON.parse(line) as { msg: string }).msg);
  assert.match(
    messages.at(-1)!,
    /^'disk': front-end dropped: memory region of \d+ bytes at 0x10000000: its file was cut/,
  );
  await until('the end of the session', () => !served.transport.connected && mapCount(memoryName) === 0);

  const next = await startRemote(served.path);
  assert.equal((await next.client.read(0, 4096)).status, BLK_S.OK);
  await next.close();
  await other.close();
  await served.close();
  await others.close();
  await Promise.all(nodes.map((node) => node.close()));
  closeFd(memory);
  closeFd(kick);
});
