/**
 * Long random programs on several queues at once, against an array: reads, writes, discards, write-zeroes,
 * flushes and resizes, while the device is stopped and started again under the load.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { VduseError } from '../../src/base/errors.js';
import type { BlockNode, FileNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { BLK_S, BLK_T } from '../../src/device/blk/blk-protocol.js';
import { RING_F } from '../../src/virtqueue/layout.js';
import { type BlkSetup, localNode, memoryNode, startBlk } from '../support/blk.js';
import { encodeRanges } from '../support/blk-client.js';
import { DiskModel } from '../support/disk-model.js';
import type { FrontEndOptions } from '../support/front-end.js';
import { makeTestPool } from '../support/leftovers.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { Random, scaled, testRandom } from '../support/random.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const laneBytes = 192 << 10;
const laneCount = 9;
const size = laneBytes * laneCount;
const stepsPerLane = scaled(45);
const pool = makeTestPool({ size: 2 });

/** One stretch of the disk that one loop of requests has for itself, so that their order is known. */
class Lane {
  readonly #setup: BlkSetup;
  readonly #node: BlockNode;
  readonly #model: DiskModel;
  readonly #random: Random;
  readonly #start: number;
  readonly #number: number;
  readonly #alignment: number;

  constructor(setup: BlkSetup, parts: { node: BlockNode; model: DiskModel; number: number; seed: number }) {
    this.#setup = setup;
    this.#node = parts.node;
    this.#model = parts.model;
    this.#number = parts.number;
    this.#start = parts.number * laneBytes;
    this.#random = new Random(parts.seed);
    this.#alignment = parts.node.limits.requestAlignment;
  }

  async run(): Promise<void> {
    for (let step = 0; step < stepsPerLane; step++) {
      await this.#step();
    }
  }

  get #end(): number {
    return this.#number === laneCount - 1 ? this.#model.size : this.#start + laneBytes;
  }

  #range(most: number): { offset: number; length: number } {
    const unit = this.#alignment;
    const units = (this.#end - this.#start) / unit;
    const first = this.#random.between(0, units - 1);
    const length = this.#random.between(1, Math.min(units - first, Math.max(1, most / unit)));
    return { offset: this.#start + first * unit, length: length * unit };
  }

  async #step(): Promise<void> {
    const random = this.#random;
    const kind = random.between(0, 99);
    if (kind < 38) {
      await this.#read();
    } else if (kind < 76) {
      await this.#write();
    } else if (kind < 93) {
      const canDiscard = this.#node.features.discard;
      await this.#ranges(canDiscard && random.oneIn(2) ? BLK_T.DISCARD : BLK_T.WRITE_ZEROES);
    } else if (kind < 97 || this.#number < laneCount - 1) {
      assert.equal((await this.#setup.client.flush(this.#queue())).status, BLK_S.OK);
    } else {
      await this.#resize();
    }
  }

  async #read(): Promise<void> {
    const { offset, length } = this.#range(this.#random.oneIn(8) ? laneBytes : 16384);
    const reply = await this.#setup.client.request({
      type: BLK_T.IN,
      sector: offset / 512,
      in: length,
      queue: this.#queue(),
      ...this.#split(),
    });
    assert.equal(reply.status, BLK_S.OK);
    this.#model.check(offset, reply.data, `read of ${length} at ${offset}`);
  }

  async #write(): Promise<void> {
    const { offset, length } = this.#range(this.#random.oneIn(8) ? laneBytes : 16384);
    const out = this.#random.oneIn(6) ? new Uint8Array(length) : this.#random.bytes(length);
    const reply = await this.#setup.client.request({
      type: BLK_T.OUT,
      sector: offset / 512,
      out,
      queue: this.#queue(),
      ...this.#split(),
    });
    assert.equal(reply.status, BLK_S.OK);
    this.#model.write(offset, out);
  }

  async #ranges(type: number): Promise<void> {
    const ranges = Array.from({ length: this.#random.between(1, 3) }, () => this.#range(65536));
    const flags = type === BLK_T.WRITE_ZEROES && this.#random.oneIn(2) ? 1 : 0;
    const out = encodeRanges(
      ranges.map((one) => ({ sector: one.offset / 512, sectors: one.length / 512, flags })),
    );
    const reply = await this.#setup.client.request({ type, out, queue: this.#queue(), ...this.#split() });
    assert.equal(reply.status, BLK_S.OK);
    for (const { offset, length } of ranges) {
      if (type === BLK_T.DISCARD) {
        this.#model.discard(offset, length);
      } else {
        this.#model.zero(offset, length);
      }
    }
  }

  /** Of the last lane only: nobody else's sectors come and go. */
  async #resize(): Promise<void> {
    const to = size - laneBytes + this.#random.between(1, 16) * 16384;
    await this.#node.resize(to);
    this.#setup.device.resized();
    this.#model.resize(to);
    const beyond = await this.#setup.client.read(to, this.#alignment, this.#queue());
    assert.equal(beyond.status, BLK_S.IOERR);
  }

  #queue(): number {
    return this.#random.between(0, this.#setup.frontEnd.queues.length - 1);
  }

  #split(): { split?: { random: Random; pieces: number } } {
    return this.#random.oneIn(3)
      ? { split: { random: this.#random, pieces: this.#random.between(2, 20) } }
      : {};
  }
}

interface LoadPlan {
  readonly name: string;
  readonly open: () => Promise<BlockNode>;
  readonly frontEnd?: FrontEndOptions;
  /** What the disk holds in truth, beside what the device says. */
  readonly truth?: () => Uint8Array;
}

/** Stops and starts the device until `lanes` are over. */
async function disturb(setup: BlkSetup, random: Random, lanes: Promise<unknown>): Promise<number> {
  let running = true;
  const over = lanes.finally(() => {
    running = false;
  });
  over.catch(() => {});
  let rounds = 0;
  while (running) {
    const { drained } = await setup.frontEnd.quiesce();
    assert.ok(drained);
    if (random.oneIn(2)) {
      await sleep(random.between(0, 3));
    }
    await setup.frontEnd.activate();
    rounds++;
    await sleep(random.between(1, 15));
  }
  return rounds;
}

async function load(plan: LoadPlan, seed: number): Promise<void> {
  const node = await plan.open();
  const setup = await startBlk({
    node,
    hosts: pool,
    device: { queueCount: 3, queueSize: 64 },
    frontEnd: { dataBytes: 48 << 20, ...plan.frontEnd },
  });
  const random = new Random(seed);
  const model = new DiskModel(size);
  try {
    const lanes = Promise.all(
      Array.from({ length: laneCount }, (_, number) =>
        new Lane(setup, { node, model, number, seed: random.next() }).run(),
      ),
    );
    const [rounds] = await Promise.all([disturb(setup, random, lanes), lanes]);
    assert.ok(rounds > 1, 'the device was stopped under load');
    for (let offset = 0; offset < model.size; offset += 65536) {
      const { status, data } = await setup.client.read(offset, Math.min(65536, model.size - offset));
      assert.equal(status, BLK_S.OK);
      model.check(offset, data, 'at the end');
    }
    const truth = plan.truth?.();
    if (truth !== undefined) {
      assert.equal(truth.length, model.size);
      model.check(0, truth, 'behind the device');
    }
  } finally {
    await setup.close();
  }
}

function fileIn(directory: string, options: Partial<FileNodeOptions>): Pick<LoadPlan, 'open' | 'truth'> {
  const filename = join(directory, `disk-${Math.random()}.img`);
  return {
    open: () => {
      makeSparseFile(filename, size);
      return openBlockNode({ driver: 'file', nodeName: 'disk', filename, discard: 'unmap', ...options });
    },
    truth: () => readFileSync(filename),
  };
}

const directory = makeTempDir();
const disk = new MemoryDisk({ size });
const plans: LoadPlan[] = [
  { name: 'a file', ...fileIn(directory, {}) },
  {
    name: 'a file by worker threads, zeroes detected',
    ...fileIn(directory, { aio: 'threads', detectZeroes: 'unmap' }),
  },
  {
    name: 'a file that ignores discards, without event indices and indirect tables',
    ...fileIn(directory, { discard: 'ignore', detectZeroes: 'on' }),
    frontEnd: { without: [RING_F.EVENT_IDX, RING_F.INDIRECT_DESC] },
  },
  {
    name: 'a file with cache.direct, buffers at odd addresses',
    ...fileIn(directory, { cache: { direct: true } }),
  },
  {
    name: 'a file with cache.direct, buffers at pages',
    ...fileIn(directory, { cache: { direct: true } }),
    frontEnd: { buffers: 'page' },
  },
  { name: 'memory', open: () => memoryNode(size) },
  { name: "a user's block driver", open: async () => localNode(disk), truth: () => disk.bytes },
];

for (const plan of plans) {
  test(`load on ${plan.name}`, { timeout: 120_000 }, async (t) => {
    const { seed } = testRandom();
    t.diagnostic(`VDUSE_SEED=${seed}`);
    try {
      await load(plan, seed);
    } catch (error) {
      if (
        error instanceof VduseError &&
        error.code === 'NOT_SUPPORTED' &&
        plan.name.includes('cache.direct')
      ) {
        t.skip(`${directory} is on a file system without O_DIRECT`);
        return;
      }
      throw error;
    }
  });
}

test('load on a file in tmpfs, which zeroes by punching holes and allocating again', {
  timeout: 120_000,
}, async (t) => {
  let shm: string;
  try {
    shm = mkdtempSync('/dev/shm/vduse-test-');
  } catch {
    t.skip('/dev/shm is no directory for files here');
    return;
  }
  const { seed } = testRandom();
  t.diagnostic(`VDUSE_SEED=${seed}`);
  try {
    await load({ name: 'tmpfs', ...fileIn(shm, {}) }, seed);
  } finally {
    rmSync(shm, { recursive: true });
  }
});
