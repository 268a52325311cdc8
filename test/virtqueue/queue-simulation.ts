/**
 * Both sides of a queue, each with a sleep that only the other side's notification ends, run one small step
 * at a time in an order that the test chooses. What must hold is checked after every step.
 */
import assert from 'node:assert/strict';
import { MemoryAccess, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { Errno } from '../../src/native/errno.js';
import { ChainBuffers } from '../../src/virtqueue/chain-buffers.js';
import type { DescriptorChain } from '../../src/virtqueue/descriptor-chain.js';
import { UsedBatch } from '../../src/virtqueue/driver-virtqueue.js';
import type { TestGuest } from '../support/guest.js';
import { QueuePair, type QueuePairPlan } from '../support/queue-pair.js';

export const slotBytes = 640;
export const slotCount = 48;
const payloadBytes = slotBytes * slotCount;
/** Room for the rings below the payload. */
export const payloadOffset = 24 << 20;
export const simulationBytes = payloadOffset + payloadBytes;

/** Lengths of the buffers of a chain; a gap of some bytes is left before each. */
export interface ChainPlan {
  readonly readable: readonly number[];
  readonly writable: readonly number[];
  readonly gap: number;
}

interface Slot {
  readonly plan: ChainPlan;
  readonly input: Uint8Array;
  written: number;
  state: 'added' | 'published' | 'taken' | 'used';
}

type Side = 'awake' | 'about to sleep' | 'asleep';

/** What the device answers with: bytes that depend on all that it read. */
function answerByte(input: Uint8Array, n: number): number {
  return input.reduce((sum, byte) => (sum * 31 + byte) & 0xff, 17 + n) & 0xff;
}

function sum(lengths: readonly number[]): number {
  return lengths.reduce((total, length) => total + length, 0);
}

export class QueueSimulation {
  readonly #guest: TestGuest;
  readonly #pair: QueuePair;
  readonly #plan: QueuePairPlan;
  readonly #borders: readonly number[];
  readonly #hostOrder: readonly number[];
  readonly #slots: (Slot | undefined)[] = new Array(slotCount).fill(undefined);
  /** Heads and their slots in the order they were added; the device must see them in this one. */
  readonly #added: { head: number; slot: number }[] = [];
  readonly #taken: { head: number; slot: number }[] = [];
  readonly #chain: DescriptorChain;
  #published = 0;
  #staged = 0;
  #device: Side = 'awake';
  #driver: Side = 'awake';
  #kicked = false;
  #interrupted = false;
  #serial = 0;
  completed = 0;

  /** `cuts` are guest addresses at which the payload's memory goes on in another region. */
  constructor(plan: QueuePairPlan, guest: TestGuest, cuts: readonly number[]) {
    this.#guest = guest;
    this.#plan = plan;
    this.#borders = [0, ...new Set(cuts.filter((cut) => cut > 0 && cut < payloadBytes)), payloadBytes].sort(
      (a, b) => a - b,
    );
    // The last guest region lies first in host memory, so that a missed border is a wrong byte.
    let offset = payloadOffset + payloadBytes;
    const regions: MemoryRegion[] = [];
    const order: number[] = [];
    for (let n = 0; n + 1 < this.#borders.length; n++) {
      const length = this.#borders[n + 1] - this.#borders[n];
      offset -= length;
      order.push(offset);
      regions.push(
        guest.region({ start: this.#borders[n], offset, length, access: MemoryAccess.READ_WRITE }),
      );
    }
    this.#hostOrder = order;
    this.#pair = new QueuePair(plan, guest, regions);
    this.#chain = this.#pair.device.createChain();
  }

  /** Where a guest byte of the payload is in the test's map. */
  #offsetOf(address: number): number {
    const n = this.#borders.findIndex((border, at) => address >= border && address < this.#borders[at + 1]);
    return this.#hostOrder[n] + (address - this.#borders[n]);
  }

  /** Guest addresses of every byte of the slot's buffers on one side. */
  #addresses(slot: number, side: 'readable' | 'writable'): number[] {
    const { plan } = this.#slots[slot]!;
    const result: number[] = [];
    let at = slot * slotBytes;
    for (const [n, length] of [...plan.readable, ...plan.writable].entries()) {
      at += plan.gap;
      if (n < plan.readable.length === (side === 'readable')) {
        for (let byte = 0; byte < length; byte++) {
          result.push(at + byte);
        }
      }
      at += length;
    }
    return result;
  }

  driverAdds(plan: ChainPlan): void {
    const slot = this.#slots.indexOf(undefined);
    if (slot < 0) {
      return;
    }
    const buffers = new ChainBuffers(plan.readable.length + plan.writable.length);
    let at = slot * slotBytes;
    for (const length of plan.readable) {
      buffers.addReadable(at + plan.gap, length);
      at += plan.gap + length;
    }
    for (const length of plan.writable) {
      buffers.addWritable(at + plan.gap, length);
      at += plan.gap + length;
    }
    const free = this.#pair.driver.freeDescriptors;
    const indirect = buffers.count > 1 && buffers.count <= (this.#plan.tableEntries ?? 0);
    const needed = indirect ? 1 : buffers.count;
    const serial = this.#serial++;
    const input = Uint8Array.from({ length: sum(plan.readable) }, (_, n) => (serial * 7 + n * 13) & 0xff);
    const head = this.#pair.driver.addAvailable(buffers, slot);
    if (needed > this.#plan.size) {
      assert.equal(head, -Errno.EINVAL);
      return;
    }
    if (needed > free) {
      assert.equal(head, -Errno.ENOSPC);
      return;
    }
    assert.ok(head >= 0 && head < this.#plan.size);
    assert.equal(this.#pair.driver.freeDescriptors, free - needed);
    this.#slots[slot] = { plan, input, written: 0, state: 'added' };
    for (const [n, address] of this.#addresses(slot, 'readable').entries()) {
      this.#guest.bytes[this.#offsetOf(address)] = input[n];
    }
    for (const address of this.#addresses(slot, 'writable')) {
      this.#guest.bytes[this.#offsetOf(address)] = 0;
    }
    this.#added.push({ head, slot });
    this.#staged++;
  }

  driverPublishes(): void {
    for (const { slot } of this.#added.slice(this.#published)) {
      this.#slots[slot]!.state = 'published';
    }
    this.#published += this.#staged;
    this.#staged = 0;
    this.#kicked = this.#pair.driver.publishAvailable() || this.#kicked;
    this.check();
  }

  /** The driver's loop about used elements, one step of it. */
  driverSteps(batchSize: number): void {
    const { driver } = this.#pair;
    if (this.#driver === 'asleep') {
      if (this.#interrupted) {
        this.#interrupted = false;
        driver.disableNotifications();
        this.#driver = 'awake';
      }
      return;
    }
    if (this.#driver === 'about to sleep') {
      this.#driver = driver.enableNotifications() ? 'awake' : 'asleep';
      this.check();
      return;
    }
    const batch = new UsedBatch(batchSize);
    const count = driver.popUsed(batch);
    assert.ok(count >= 0 && count <= batchSize);
    for (let n = 0; n < count; n++) {
      this.#driverVerifies(batch.token[n], batch.writtenLength[n]);
    }
    if (count === 0) {
      this.#driver = 'about to sleep';
    }
  }

  #driverVerifies(slot: number, writtenLength: number): void {
    const given = this.#slots[slot];
    assert.equal(given?.state, 'used');
    assert.equal(writtenLength, given.written);
    const addresses = this.#addresses(slot, 'writable');
    for (let n = 0; n < addresses.length; n++) {
      const expected: number = n < writtenLength ? answerByte(given.input, n) : 0;
      assert.equal(this.#guest.bytes[this.#offsetOf(addresses[n])], expected);
    }
    this.#slots[slot] = undefined;
    this.completed++;
  }

  /** The device's loop about available chains, one step of it. */
  deviceSteps(batchSize: number): void {
    const { device } = this.#pair;
    if (this.#device === 'asleep') {
      if (this.#kicked) {
        this.#kicked = false;
        device.disableNotifications();
        this.#device = 'awake';
      }
      return;
    }
    if (this.#device === 'about to sleep') {
      this.#device = device.enableNotifications() ? 'awake' : 'asleep';
      this.check();
      return;
    }
    const heads = new Uint16Array(batchSize);
    const count = device.popAvailable(heads);
    assert.equal(count, Math.min(batchSize, this.#published));
    for (let n = 0; n < count; n++) {
      const expected: { head: number; slot: number } = this.#added.shift()!;
      this.#published--;
      assert.equal(heads[n], expected.head);
      this.#slots[expected.slot]!.state = 'taken';
      this.#taken.push(expected);
    }
    if (count === 0) {
      this.#device = 'about to sleep';
    }
  }

  /** Ends one of the chains that the device holds, in any order; the driver sees it with the next publication. */
  deviceCompletes(choice: number, shortBy: number): void {
    if (this.#taken.length === 0) {
      return;
    }
    const [{ head, slot }] = this.#taken.splice(choice % this.#taken.length, 1);
    const given = this.#slots[slot]!;
    const chain = this.#chain;
    assert.equal(this.#pair.device.readChain(head, chain), 0);
    assert.equal(chain.readableBytes, sum(given.plan.readable));
    assert.equal(chain.writableBytes, sum(given.plan.writable));
    const input: number[] = [];
    const output: Uint8Array[] = [];
    for (let n = 0; n < chain.count; n++) {
      const bytes = this.#guest.at(chain.hostAddress[n], chain.length[n]);
      if (n < chain.readableCount) {
        input.push(...bytes);
      } else {
        output.push(bytes);
      }
    }
    assert.deepEqual(Uint8Array.from(input), given.input);
    given.written = Math.max(0, chain.writableBytes - shortBy);
    let n = 0;
    for (const bytes of output) {
      for (let at = 0; at < bytes.length && n < given.written; at++, n++) {
        bytes[at] = answerByte(given.input, n);
      }
    }
    given.state = 'used';
    this.#pair.device.addUsed(head, given.written);
  }

  devicePublishes(): void {
    this.#interrupted = this.#pair.device.publishUsed() || this.#interrupted;
    this.check();
  }

  /** Nobody sleeps while there is work for it and no notification is on its way. */
  check(): void {
    if (this.#device === 'asleep' && !this.#kicked) {
      assert.equal(this.#published, 0, 'the device sleeps and nobody will kick it');
    }
    if (this.#driver === 'asleep' && !this.#interrupted) {
      const used = this.#slots.filter((slot) => slot?.state === 'used').length;
      assert.ok(used === 0 || this.#pair.device.stagedUsed > 0, 'the driver sleeps and nobody will wake it');
    }
  }

  /** Runs both sides by their rules until nothing is left; a lost notification shows as work that stays. */
  drain(): void {
    this.driverPublishes();
    for (let round = 0; round < 4 * slotCount + 16; round++) {
      this.deviceSteps(5);
      this.deviceCompletes(round, 0);
      this.devicePublishes();
      this.driverSteps(3);
    }
    assert.deepEqual(
      this.#slots.filter((slot) => slot !== undefined),
      [],
      'chains did not come back',
    );
    assert.equal(this.#pair.driver.freeDescriptors, this.#plan.size);
    assert.equal(this.#pair.driver.inFlight, 0);
  }
}
