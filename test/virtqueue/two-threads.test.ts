/** Both sides on real threads with real eventfds: what a simulation cannot show is the order of memory. */
import assert from 'node:assert/strict';
import { after, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { MemoryAccess } from '../../src/memory/guest-memory.js';
import { closeFd, createEventFd, signalEventFd } from '../../src/native/fd.js';
import { type EventSource, Reactor } from '../../src/reactor/reactor.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import { UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import { TestGuest } from '../support/guest.js';
import { QueuePair } from '../support/queue-pair.js';
import type { DeviceWork } from './device-worker.js';

const guest = new TestGuest(2 << 20);
after(() => guest.close());
const payloadOffset = 1 << 20;
const slotBytes = 64;
const size = 16;
const payload = guest.region({
  start: 0,
  offset: payloadOffset,
  length: slotBytes * size,
  access: MemoryAccess.READ_WRITE,
});

/** Well below the second after which a reactor looks for a lost kick by itself. */
const stallMs = 700;

/** Keeps some chains on their way, now one and now many, so that both sides often sleep. */
class EchoDriver implements EventSource {
  readonly #pair: QueuePair;
  readonly #kickFd: number;
  readonly #batch = new UsedBatch(5);
  readonly #buffers = new ChainBuffers(2);
  readonly #free = Array.from({ length: size }, (_, n) => n);
  readonly #sent = new Uint8Array(size);
  readonly #total: number;
  #settle: (error?: Error) => void = () => {};
  #submitted = 0;
  #lastProgress = performance.now();
  kicks = 0;
  completed = 0;
  longestStallMs = 0;
  readonly done = new Promise<void>((resolve, reject) => {
    this.#settle = (error) => (error === undefined ? resolve() : reject(error));
  });

  constructor(context: { pair: QueuePair; kickFd: number; total: number }) {
    this.#pair = context.pair;
    this.#kickFd = context.kickFd;
    this.#total = context.total;
  }

  poll(): number {
    const count = this.#pair.driver.popUsed(this.#batch);
    if (count < 0) {
      this.#settle(new Error('the used ring is broken'));
      return 0;
    }
    for (let n = 0; n < count; n++) {
      this.#verify(this.#batch.token[n], this.#batch.writtenLength[n]);
    }
    if (count !== 0) {
      const now = performance.now();
      this.longestStallMs = Math.max(this.longestStallMs, now - this.#lastProgress);
      this.#lastProgress = now;
    }
    // The number on their way changes every 50 requests, and is often one.
    const window = Math.max(1, (Math.floor(this.completed / 50) * 5) % (size + 1));
    while (this.#submitted < this.#total && this.#submitted - this.completed < window) {
      this.#submit();
    }
    return count;
  }

  #submit(): void {
    const slot = this.#free.pop()!;
    const at = slot * slotBytes;
    const value = this.#submitted++ & 0xff;
    this.#sent[slot] = value;
    guest.bytes.fill(value, payloadOffset + at, payloadOffset + at + 8);
    guest.bytes.fill(0, payloadOffset + at + 8, payloadOffset + at + 16);
    this.#buffers.clear();
    this.#buffers.addReadable(at, 8);
    this.#buffers.addWritable(at + 8, 8);
    assert.ok(this.#pair.driver.addAvailable(this.#buffers, slot) >= 0);
  }

  #verify(slot: number, writtenLength: number): void {
    const at = payloadOffset + slot * slotBytes + 8;
    const expected = (this.#sent[slot] + 1) & 0xff;
    if (writtenLength !== 8 || guest.bytes.subarray(at, at + 8).some((byte) => byte !== expected)) {
      this.#settle(new Error(`request ${this.completed}: wrong answer in slot ${slot}`));
    }
    this.#free.push(slot);
    if (++this.completed === this.#total) {
      this.#settle();
    }
  }

  publish(): void {
    if (this.#pair.driver.publishAvailable()) {
      this.kicks++;
      signalEventFd(this.#kickFd);
    }
  }

  prepareToSleep(): boolean {
    return this.#pair.driver.enableNotifications();
  }

  onCompletion(): void {
    this.#pair.driver.disableNotifications();
  }
}

describe('both sides of a split virtqueue on two threads', () => {
  for (const eventIdx of [false, true]) {
    it(`lose neither a byte nor a wake, ${eventIdx ? 'with' : 'without'} EVENT_IDX`, async () => {
      const fds = { kickFd: createEventFd(), callFd: createEventFd(), stopFd: createEventFd() };
      const pair = new QueuePair({ size, eventIdx, tableEntries: 2, index: 65000 }, guest, [payload]);
      const work: DeviceWork = { ...fds, regions: pair.deviceRegions, config: pair.deviceConfig };
      const worker = new Worker(new URL('./device-worker.js', import.meta.url), { workerData: work });
      const failed = new Promise<never>((_, reject) => worker.once('error', reject));
      const exit = new Promise<number>((resolve) => worker.once('exit', resolve));
      await Promise.race([failed, new Promise((resolve) => worker.once('message', resolve))]);
      const reactor = new Reactor({ entries: 8 });
      const total = 5000;
      const driver = new EchoDriver({ pair, kickFd: fds.kickFd, total });
      reactor.armPoll(fds.callFd, reactor.add(driver), 1);
      try {
        reactor.attachToEventLoop();
        await Promise.race([failed, driver.done, sleep(8000, undefined, { ref: false })]);
      } finally {
        reactor.close();
        signalEventFd(fds.stopFd);
        await exit;
        for (const fd of Object.values(fds)) {
          closeFd(fd);
        }
      }
      assert.equal(driver.completed, total);
      assert.ok(driver.longestStallMs < stallMs, `nothing moved for ${driver.longestStallMs} ms`);
      assert.ok(driver.kicks > 50 && driver.kicks <= total, `${driver.kicks} kicks`);
    });
  }
});
