/** Long random programs on a disk in software, beside an array that says what the disk should hold. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BlockNode } from '../../src/block/node.js';
import { SharedThreadHost } from '../../src/daemon/shared-thread-host.js';
import type { QueueHosts } from '../../src/device/queue-host.js';
import type { SharedBuffer } from '../../src/software-vduse/blk-frontend.js';
import type { DeviceLoop } from '../../src/software-vduse/device-loop.js';
import { VduseControl } from '../../src/transport/vduse/control.js';
import { RING_F } from '../../src/virtqueue/layout.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { memoryNode } from '../support/blk.js';
import { DiskModel } from '../support/disk-model.js';
import { type Random, scaled, testRandom } from '../support/random.js';
import { mapCount, openFdCount } from '../support/resources.js';
import { SoftwareDisk, type SoftwareDiskOptions } from '../support/software-disk.js';

const cellBytes = 128 << 10;
const smallestBytes = 4 << 20;
const BLK_F = { MQ: 12, DISCARD: 13, WRITE_ZEROES: 14 };

/** What happens to a device while it has requests. */
type Event = 'share' | 'unshare' | 'grow' | 'reattach' | 'reopen' | 'timeout';

/** One disk, its model, and the buffers that it shares with the device. */
class Program {
  readonly #random: Random;
  readonly #events: readonly Event[];
  readonly #node: BlockNode;
  readonly #settings: SoftwareDiskOptions;
  #disk: SoftwareDisk;
  readonly #model: DiskModel;
  #shared: SharedBuffer[] = [];
  /** What has been done, by kind. */
  readonly counts: Record<string, number> = {};

  /** The device has threads, or its front-end's when there is a `loop`. */
  static async start(
    random: Random,
    events: readonly Event[],
    where: { readonly hosts: QueueHosts; readonly loop?: DeviceLoop },
  ): Promise<Program> {
    const node = await memoryNode(smallestBytes);
    const optional = [RING_F.INDIRECT_DESC, RING_F.EVENT_IDX, BLK_F.MQ, BLK_F.DISCARD, BLK_F.WRITE_ZEROES];
    const refused = optional.filter(() => random.oneIn(3));
    const refuseFeatures = refused.reduce((bits, bit) => bits | (1n << BigInt(bit)), 0n);
    const { hosts, loop } = where;
    const settings: SoftwareDiskOptions = {
      node,
      hosts,
      kernel: { bounceBytes: random.pick([1 << 20, 4 << 20]), messageTimeoutMs: 20_000 },
      frontend: { refuseFeatures, ...(loop === undefined ? {} : { loop }) },
      device: { queueCount: random.between(1, 3), queueSize: random.pick([4, 8, 64, 256]) },
    };
    return new Program(random, events, settings, await SoftwareDisk.start(settings));
  }

  private constructor(
    random: Random,
    events: readonly Event[],
    settings: SoftwareDiskOptions,
    disk: SoftwareDisk,
  ) {
    this.#random = random;
    this.#events = events;
    this.#node = settings.node;
    this.#settings = settings;
    this.#disk = disk;
    this.#model = new DiskModel(smallestBytes);
  }

  /** Requests that don't overlap, all at once, and one thing that happens to the device meanwhile. */
  async round(): Promise<void> {
    const free = Array.from({ length: this.#disk.frontend.size / cellBytes }, (_, n) => n);
    const requests: Promise<void>[] = [];
    const count = this.#random.between(1, 24);
    const buffers = [...this.#shared];
    for (let n = 0; n < count; n++) {
      const at = this.#random.between(0, free.length - 1);
      const cell = free[at];
      // A run of cells that nobody else has in this round.
      const cells = free[at + 1] === cell + 1 && free[at + 2] === cell + 2 && this.#random.oneIn(4) ? 3 : 1;
      free.splice(at, cells);
      requests.push(this.#request(cell * cellBytes, cells * cellBytes, buffers));
      if (free.length === 0) {
        break;
      }
    }
    if (this.#random.oneIn(3)) {
      await sleep(0);
    }
    await Promise.all([this.#event(), ...requests]);
    if (this.#events.includes('timeout') && this.#random.oneIn(8)) {
      await this.#timeout();
    }
  }

  async finish(): Promise<void> {
    const all = new Uint8Array(this.#disk.frontend.size);
    await this.#disk.frontend.read(0, all);
    this.#model.check(0, all, 'at the end');
    assert.equal(this.#disk.frontend.inFlight, 0);
    await this.#disk.close();
    await this.#node.close();
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** A buffer that is bounced, or a part of one that is not; each shared one is used once in a round. */
  #buffer(length: number, buffers: SharedBuffer[]): Uint8Array {
    const shared = this.#random.oneIn(2) ? buffers.pop() : undefined;
    if (shared === undefined || shared.bytes.length < length) {
      return new Uint8Array(length);
    }
    this.#count('direct');
    const room = (shared.bytes.length - length) / 512;
    const offset = this.#random.between(0, room) * 512;
    return shared.bytes.subarray(offset, offset + length);
  }

  async #request(start: number, room: number, buffers: SharedBuffer[]): Promise<void> {
    const random = this.#random;
    const sectors = random.between(1, random.oneIn(3) ? room / 512 : 8);
    const offset = start + random.between(0, room / 512 - sectors) * 512;
    const length = sectors * 512;
    const { frontend } = this.#disk;
    const kinds = ['read', 'read', 'write', 'write', 'flush', 'zeroes', 'discard'];
    const kind = random.pick(kinds);
    this.#count(kind);
    if (kind === 'read') {
      const buffer = this.#buffer(length, buffers).fill(0xa5);
      await frontend.read(offset, buffer);
      this.#model.check(offset, buffer, `${length} bytes at ${offset}`);
    } else if (kind === 'write') {
      const buffer = this.#buffer(length, buffers);
      for (let at = 0; at < length; at += 8) {
        buffer[at] = random.next();
        buffer[at + 7] = at >>> 9;
      }
      await frontend.write(offset, buffer);
      this.#model.write(offset, buffer);
    } else if (kind === 'zeroes' && frontend.canWriteZeroes) {
      await frontend.writeZeroes(offset, length, { unmap: random.oneIn(2) });
      this.#model.zero(offset, length);
    } else if (kind === 'discard' && frontend.canDiscard) {
      this.#model.discard(offset, length);
      await frontend.discard(offset, length);
    } else {
      await frontend.flush();
    }
  }

  async #event(): Promise<void> {
    const event = this.#random.oneIn(2) ? this.#random.pick(this.#events) : 'none';
    // A timeout has the device for itself, after the round.
    if (event === 'timeout') {
      return;
    }
    this.#count(event);
    switch (event) {
      case 'share':
        if (this.#shared.length < 4) {
          this.#shared.push(this.#disk.frontend.allocateSharedBuffer(this.#random.between(1, 96) * 4096));
        }
        return;
      case 'unshare': {
        // One that no request of this round can have.
        const buffer = this.#disk.frontend.allocateSharedBuffer(4096);
        buffer.bytes.fill(1);
        await this.#disk.frontend.removeSharedBuffer(buffer);
        return;
      }
      case 'grow':
        await this.#resize(this.#disk.frontend.size + 2 * cellBytes);
        return;
      case 'reattach':
        // Requests in flight end first.
        await this.#disk.transport.detach();
        this.#shared = [];
        await this.#disk.transport.attach();
        return;
      case 'reopen':
        await this.#disk.leave();
        await this.#disk.adopt();
        return;
      default:
        return;
    }
  }

  /** A message goes unanswered, which breaks the device for good; the image gets another one. */
  async #timeout(): Promise<void> {
    this.#count('timeout');
    const { kernel, name, frontend } = this.#disk;
    await this.#disk.leave();
    kernel.setMessageTimeoutMs(name, 20);
    assert.equal(await frontend.queueState(0), undefined);
    await kernel.removeFromBus(name);
    const control = new VduseControl(kernel);
    control.destroy(name);
    control.close();
    this.#shared = [];
    this.#disk = await SoftwareDisk.start(this.#settings);
  }

  async #resize(size: number): Promise<void> {
    const { frontend, device } = this.#disk;
    if (size > 2 * smallestBytes) {
      return;
    }
    const told = new Promise<number>((resolve) => {
      frontend.onResize = resolve;
    });
    await this.#node.resize(size);
    this.#model.resize(size);
    device.resized();
    assert.equal(await told, size);
    assert.equal(frontend.size, size);
  }
}

/** Threads of the process, without the kernel's for its rings, which outlive a ring by seconds. */
function threadCount(): number {
  const isOurs = (task: string): boolean => {
    try {
      return !readFileSync(`/proc/self/task/${task}/comm`, 'utf8').startsWith('iou-');
    } catch {
      return false;
    }
  };
  return readdirSync('/proc/self/task').filter(isOurs).length;
}

async function runPrograms(t: TestContext, count: number, events: readonly Event[]): Promise<void> {
  const random = testRandom();
  t.diagnostic(`VDUSE_SEED=${random.seed}`);
  const rounds = 60;
  const totals: Record<string, number> = {};
  let held: { fds: number; maps: number; threads: number } | undefined;
  for (let run = 0; run < count; run++) {
    const hosts = new QueueThreadPool({ size: 2 });
    const shared = new SharedThreadHost();
    // The first run has threads, so that it loads all that stays.
    const where = run % 2 === 0 ? { hosts } : { hosts: shared, loop: shared };
    const program = await Program.start(random, events, where);
    for (let round = 0; round < rounds; round++) {
      await program.round();
    }
    await program.finish();
    await hosts.close();
    for (const [what, times] of Object.entries(program.counts)) {
      totals[what] = (totals[what] ?? 0) + times;
    }
    const holds = { fds: openFdCount(), maps: mapCount('vduse-') };
    // The first run loads what stays: worker code, and the event loop's own threads.
    held ??= { ...holds, threads: threadCount() };
    assert.deepEqual({ ...holds, threads: held.threads }, held, `after run ${run}`);
    for (let n = 0; n < 100 && threadCount() > held.threads; n++) {
      await sleep(20);
    }
    assert(threadCount() <= held.threads, `${threadCount()} threads after run ${run}, not ${held.threads}`);
  }
  t.diagnostic(JSON.stringify(totals));
}

test('random programs never differ from the model, and leave nothing', { timeout: 120_000 }, async (t) => {
  await runPrograms(t, scaled(8), ['share', 'unshare', 'grow', 'reattach']);
});

test('nor where the device is left and adopted with requests in flight', { timeout: 120_000 }, async (t) => {
  await runPrograms(t, scaled(4), ['share', 'reattach', 'reopen', 'reopen']);
});

test('nor where messages go unanswered and the broken device is replaced', {
  timeout: 120_000,
}, async (t) => {
  await runPrograms(t, scaled(3), ['share', 'reattach', 'timeout']);
});
