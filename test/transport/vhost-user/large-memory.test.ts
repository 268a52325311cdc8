/** Front-ends with much memory: huge pages, which are mapped whole or not at all, and regions of more than 4 GiB. */
import assert from 'node:assert/strict';
import { ftruncateSync } from 'node:fs';
import { after, before, describe, type TestContext, test } from 'node:test';
import type { BlockNode } from '../../../src/block/node.js';
import { BLK_S, BLK_T } from '../../../src/device/blk/blk-protocol.js';
import { closeFd, createEventFd, signalEventFd, viewBytes } from '../../../src/native/fd.js';
import { createMemoryFile, mapFile, pageSize, unmap } from '../../../src/native/memory.js';
import { VhostUserFrontend } from '../../../src/transport/vhost-user/frontend.js';
import {
  offeredProtocolFeatures,
  PROTOCOL_FEATURES_BIT,
} from '../../../src/transport/vhost-user/protocol.js';
import { AVAIL, DESC, DESC_F_NEXT, DESC_F_WRITE, USED } from '../../../src/virtqueue/layout.js';
import { memoryNode } from '../../support/blk.js';
import { encodeHeader } from '../../support/blk-client.js';
import { createHugePageFile, hugePageBytes, reserveHugePages } from '../../support/huge-pages.js';
import { makeTestPool } from '../../support/leftovers.js';
import { mapCount } from '../../support/resources.js';
import { type Served, serveVhostUser, userOffset } from '../../support/vhost-user-setup.js';
import { until } from '../../support/within.js';

const memoryName = 'large-memory';
const guestStart = 2 ** 40;
const queueSize = 16;
const blockBytes = 4096;
const hosts = makeTestPool({ size: 1 });
let node: BlockNode;
let served: Served;

before(async () => {
  node = await memoryNode(1 << 20);
  served = await serveVhostUser({ node, hosts });
});

after(async () => {
  await served.close();
  await node.close();
});

/** Where things lie in a region, which begins at `fileOffset` of its file. Offsets into the region. */
interface Layout {
  readonly fileOffset: number;
  readonly length: number;
  readonly ringsAt: number;
  readonly dataAt: number;
}

/** A driver with one request at a time, in a region that is mapped piece by piece: its file may be larger than a view. */
class SmallDriver {
  readonly frontend = VhostUserFrontend.connect(served.path);
  readonly #layout: Layout;
  readonly #memory: number;
  readonly #mapAddress: number;
  readonly #mapLength: number;
  readonly #kick = createEventFd();
  #requests = 0;

  constructor(memory: number, layout: Layout & { readonly fileBytes: number }) {
    this.#memory = memory;
    this.#layout = layout;
    this.#mapLength = layout.fileBytes;
    this.#mapAddress = mapFile({
      fd: memory,
      length: layout.fileBytes,
      offset: 0,
      readable: true,
      writable: true,
    });
  }

  #at(offset: number, length: number): Uint8Array {
    return viewBytes(this.#mapAddress + this.#layout.fileOffset + offset, length);
  }

  async start(): Promise<void> {
    const { frontend } = this;
    const { fileOffset, length, ringsAt } = this.#layout;
    const userAddress = guestStart + userOffset;
    const rings = userAddress + ringsAt;
    await frontend.setProtocolFeatures(
      (await frontend.getProtocolFeatures()) & BigInt(offeredProtocolFeatures),
    );
    await frontend.setOwner();
    await frontend.setFeatures((1n << 32n) | (1n << BigInt(PROTOCOL_FEATURES_BIT)));
    await frontend.setMemoryTable([
      { guestAddress: guestStart, length, userAddress, fileOffset, fd: this.#memory },
    ]);
    await frontend.startVring({
      index: 0,
      size: queueSize,
      availIndex: 0,
      addresses: { descriptor: rings, available: rings + pageSize, used: rings + 2 * pageSize },
      kickFd: this.#kick,
      callFd: undefined,
    });
    await frontend.enableVring(0, true);
  }

  /** Sends a request with one block of data; returns its status. */
  async request(type: number, sector: number, block: Uint8Array): Promise<number> {
    const { ringsAt, dataAt } = this.#layout;
    const isRead = type === BLK_T.IN;
    const [headerAt, statusAt] = [ringsAt + 3 * pageSize, ringsAt + 3 * pageSize + 64];
    this.#at(headerAt, 16).set(encodeHeader(type, sector));
    const data = this.#at(dataAt, blockBytes);
    if (!isRead) {
      data.set(block);
    }
    const table = new DataView(this.#at(ringsAt, queueSize * DESC.bytes).buffer);
    for (const [n, [at, length, flags]] of [
      [headerAt, 16, DESC_F_NEXT],
      [dataAt, blockBytes, DESC_F_NEXT | (isRead ? DESC_F_WRITE : 0)],
      [statusAt, 1, DESC_F_WRITE],
    ].entries()) {
      table.setBigUint64(n * DESC.bytes + DESC.address, BigInt(guestStart + at), true);
      table.setUint32(n * DESC.bytes + DESC.length, length, true);
      table.setUint16(n * DESC.bytes + DESC.flags, flags, true);
      table.setUint16(n * DESC.bytes + DESC.next, n + 1, true);
    }
    const available = new Uint16Array(this.#at(ringsAt + pageSize, 64).buffer);
    available[AVAIL.ring16 + (this.#requests % queueSize)] = 0;
    this.#requests++;
    // The slot before the index: the device reads them the other way round (virtio 2.7.13).
    Atomics.store(available, AVAIL.idx16, this.#requests);
    signalEventFd(this.#kick);
    const used = new Uint16Array(this.#at(ringsAt + 2 * pageSize, 64).buffer);
    await until('the answer', () => Atomics.load(used, USED.idx16) === this.#requests);
    if (isRead) {
      block.set(data);
    }
    return this.#at(statusAt, 1)[0];
  }

  kick(): void {
    signalEventFd(this.#kick);
  }

  close(): void {
    this.frontend.close();
    unmap(this.#mapAddress, this.#mapLength);
    closeFd(this.#kick);
  }
}

/** A block is written and read back; nothing of the front-end is left behind. */
async function exercise(memory: number, layout: Layout & { readonly fileBytes: number }): Promise<void> {
  const driver = new SmallDriver(memory, layout);
  await driver.start();
  const block = Uint8Array.from({ length: blockBytes }, (_, n) => n * 7 + layout.fileOffset / pageSize);
  assert.equal(await driver.request(BLK_T.OUT, 8, block), BLK_S.OK);
  const read = new Uint8Array(blockBytes);
  assert.equal(await driver.request(BLK_T.IN, 8, read), BLK_S.OK);
  assert.deepEqual(read, block);
  driver.close();
  await until('the end of the session', () => !served.transport.connected && mapCount(memoryName) === 0);
}

test('a region of more than 4 GiB: rings behind them, and a buffer across the border', async () => {
  const fileBytes = 6 * 2 ** 30;
  const memory = createMemoryFile(memoryName, fileBytes);
  const ringsAt = 5 * 2 ** 30;
  const dataAt = 2 ** 32 - 1024;
  for (const fileOffset of [0, 16 * pageSize]) {
    await exercise(memory, { fileBytes, fileOffset, length: fileBytes - fileOffset, ringsAt, dataAt });
  }
  closeFd(memory);
});

describe('huge pages', () => {
  const hugeBytes = hugePageBytes();
  const fileBytes = 2 * hugeBytes;
  let reserved: (() => void) | string = 'not reserved';
  before(() => {
    reserved = reserveHugePages(2);
  });
  after(() => {
    if (typeof reserved === 'function') reserved();
  });

  /** A file of two huge pages, or a skipped test. */
  async function withFile(t: TestContext, use: (memory: number) => Promise<void>): Promise<void> {
    if (typeof reserved === 'string') {
      t.skip(reserved);
      return;
    }
    const memory = createHugePageFile(memoryName, fileBytes);
    try {
      await use(memory);
    } finally {
      closeFd(memory);
    }
  }

  for (const [what, fileOffset, length] of [
    ['a region of all of them', 0, fileBytes],
    ['a region that begins and ends inside of them', 3 * pageSize, hugeBytes + 9 * pageSize],
    ['a region inside of one', hugeBytes + 5 * pageSize, 64 * pageSize],
  ] as const) {
    test(what, (t) =>
      withFile(t, async (memory) => {
        const dataAt = Math.min(length - blockBytes, hugeBytes - fileOffset - 1024);
        await exercise(memory, {
          fileBytes,
          fileOffset,
          length,
          ringsAt: 0,
          dataAt: dataAt > 0 ? dataAt : 8 * pageSize,
        });
      }),
    );
  }

  test('a file of them that is cut costs the front-end its connection', (t) =>
    withFile(t, async (memory) => {
      const layout = { fileBytes, fileOffset: 0, length: fileBytes, ringsAt: 0, dataAt: hugeBytes };
      const driver = new SmallDriver(memory, layout);
      await driver.start();
      assert.equal(await driver.request(BLK_T.OUT, 8, new Uint8Array(blockBytes)), BLK_S.OK);
      ftruncateSync(memory, 0);
      driver.kick();
      await until('the end of the session', () => !served.transport.connected);
      driver.close();
    }));
});
