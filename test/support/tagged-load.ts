/**
 * Writes, zeroes and discards at random, several at once and over each other, and knows for each sector what it may
 * hold at which moment: each write leaves its number in all its sectors. The clock counts beginnings and ends.
 */
import assert from 'node:assert/strict';
import type { BlkFrontend } from '../../src/software-vduse/blk-frontend.js';
import type { Random } from './random.js';

const sector = 512;
const sectorsMax = 400;

interface Write {
  /** 0: zeroes. */
  readonly tag: number;
  readonly begin: number;
  /** Infinity while it is under way. */
  end: number;
}

export class TaggedLoad {
  requests = 0;
  now = 0;
  readonly #disk: BlkFrontend;
  readonly #random: Random;
  /** By sector: what was written there, in the order of the beginnings. The first is the empty disk. */
  readonly #history: Write[][];
  readonly #workers: Promise<void>[];
  readonly #tags: Write[] = [];
  #going = true;

  /** The disk is empty. */
  constructor(disk: BlkFrontend, random: Random, workers = 8) {
    this.#disk = disk;
    this.#random = random;
    const empty: Write = { tag: 0, begin: -1, end: -1 };
    this.#tags.push(empty);
    this.#history = Array.from({ length: disk.size / sector }, () => [empty]);
    this.#workers = Array.from({ length: workers }, () => this.#work());
  }

  async stop(): Promise<void> {
    this.#going = false;
    await Promise.all(this.#workers);
  }

  /** Whether the copy may be of one moment between the two. */
  checkSnapshot(copy: Uint8Array, moment: { readonly calledAt: number; readonly startedAt: number }): void {
    const shown = this.#shown(copy);
    // What was over before something began that the copy has must be there as well.
    let { calledAt } = moment;
    for (const tag of shown) {
      if (tag !== 0) {
        assert.ok(this.#tags[tag].begin < moment.startedAt, `write ${tag} came after the moment`);
        calledAt = Math.max(calledAt, this.#tags[tag].begin);
      }
    }
    this.#check(shown, { overBefore: calledAt, begunBefore: moment.startedAt });
  }

  /** Whether the disk holds what was written. Nothing is under way. */
  async checkDisk(): Promise<void> {
    const content = new Uint8Array(this.#disk.size);
    const step = 1 << 20;
    for (let at = 0; at < content.length; at += step) {
      const part = new Uint8Array(step);
      await this.#disk.read(at, part);
      content.set(part, at);
    }
    this.#check(this.#shown(content), {
      overBefore: Number.POSITIVE_INFINITY,
      begunBefore: Number.POSITIVE_INFINITY,
    });
  }

  /** Each sector shows a write that nothing that was over before has replaced. */
  #check(
    shown: Uint32Array,
    { overBefore, begunBefore }: { readonly overBefore: number; readonly begunBefore: number },
  ): void {
    for (let n = 0; n < shown.length; n++) {
      const writes = this.#history[n].filter(({ begin }) => begin < begunBefore);
      const mayShow = writes.some(
        (write) =>
          write.tag === shown[n] && !writes.some(({ begin, end }) => write.end < begin && end < overBefore),
      );
      assert.ok(mayShow, `sector ${n} shows write ${shown[n]} of ${JSON.stringify(writes)}`);
    }
  }

  #shown(content: Uint8Array): Uint32Array {
    const words = new Uint32Array(content.buffer, content.byteOffset, content.length / 4);
    return Uint32Array.from(this.#history, (_, n) => {
      const first = words[(n * sector) / 4];
      const isWhole = words
        .subarray((n * sector) / 4, ((n + 1) * sector) / 4)
        .every((word) => word === first);
      assert.ok(isWhole, `sector ${n} is torn`);
      return first;
    });
  }

  async #work(): Promise<void> {
    const random = this.#random;
    while (this.#going) {
      const count = random.between(1, random.pick([1, 8, sectorsMax]));
      const first = random.between(0, this.#history.length - count);
      const kind = random.between(0, 9);
      const write: Write = {
        tag: kind < 7 ? this.#tags.length : 0,
        begin: this.now++,
        end: Number.POSITIVE_INFINITY,
      };
      if (kind < 7) {
        this.#tags.push(write);
      }
      for (let n = first; n < first + count; n++) {
        this.#history[n].push(write);
      }
      await this.#do(kind, write.tag, { offset: first * sector, length: count * sector });
      write.end = this.now++;
      this.requests++;
    }
  }

  #do(kind: number, tag: number, { offset, length }: { offset: number; length: number }): Promise<void> {
    if (kind < 7) {
      return this.#disk.write(offset, new Uint8Array(new Uint32Array(length / 4).fill(tag).buffer));
    }
    return kind < 9
      ? this.#disk.writeZeroes(offset, length, { unmap: kind === 8 })
      : this.#disk.discard(offset, length);
  }
}
