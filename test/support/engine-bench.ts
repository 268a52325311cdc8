/**
 * A file engine alone on a real ring, turned by hand: every ring entry is recorded, and an entry can be made
 * to end with a result of the test's choice instead of being carried out.
 */
import assert from 'node:assert/strict';
import { FileEngine } from '../../src/block/drivers/file-engine.js';
import type { FileEngineSpec } from '../../src/block/engine.js';
import { RequestTable } from '../../src/block/request-table.js';
import { AlignedPool } from '../../src/memory/aligned-pool.js';
import { viewBytes } from '../../src/native/fd.js';
import { mapAnonymous, unmap } from '../../src/native/memory.js';
import { RingOp } from '../../src/native/ring.js';
import { Reactor } from '../../src/reactor/reactor.js';

export interface RingEntry {
  readonly op: number;
  readonly address: number;
  /** The operation's own meaning: bytes, iovecs, or fallocate's mode. */
  readonly length: number;
  readonly offset: number;
  readonly opFlags: number;
  readonly sqeFlags: number;
  readonly token: number;
}

export interface BenchRequest {
  readonly op: number;
  readonly offset?: number;
  /** Without payload: bytes. */
  readonly length?: number;
  /** Payload, as places in the bench's memory. */
  readonly segments?: readonly { at: number; length: number }[];
  readonly flags?: number;
}

const memoryBytes = 8 << 20;

export class EngineBench {
  readonly reactor = new Reactor({ entries: 64 });
  readonly table: RequestTable;
  readonly pool = new AlignedPool();
  readonly engine: FileEngine;
  readonly memoryAddress = mapAnonymous(memoryBytes);
  readonly memory = viewBytes(this.memoryAddress, memoryBytes);
  readonly entries: RingEntry[] = [];
  readonly results = new Map<number, number>();
  /** Answers an entry in the kernel's place; undefined lets the kernel have it. */
  inject: (entry: RingEntry) => number | undefined = () => undefined;

  constructor(spec: Partial<FileEngineSpec> & { fd: number }, capacity = 16) {
    this.table = new RequestTable(capacity, 1024);
    const injected = new Map<number, number>();
    this.#spy(injected);
    this.engine = new FileEngine({
      spec: {
        kind: 'file',
        memoryAlignment: 1,
        noFlush: false,
        ignoreDiscard: false,
        forceAsync: false,
        ...spec,
      },
      table: this.table,
      sink: { onBlockComplete: (slot, result) => this.results.set(slot, result) },
      reactor: this.reactor,
      pool: this.pool,
    });
    const { engine } = this;
    const onCompletion = engine.onCompletion.bind(engine);
    engine.onCompletion = (token, result): void => {
      const instead = injected.get(token);
      injected.delete(token);
      onCompletion(token, instead ?? result);
    };
  }

  /** The operations of the recorded entries, which are then forgotten. */
  takeEntries(): RingEntry[] {
    return this.entries.splice(0);
  }

  submit(request: BenchRequest): number {
    const { table } = this;
    const slot = table.take();
    for (const { at, length } of request.segments ?? []) {
      assert.ok(table.addSegment(slot, this.memoryAddress + at, length));
    }
    table.op[slot] = request.op;
    table.offset[slot] = request.offset ?? 0;
    table.flags[slot] = request.flags ?? 0;
    if (request.segments === undefined) {
      table.length[slot] = request.length ?? 0;
    }
    this.engine.submit(slot);
    return slot;
  }

  /** Turns until the slot's request is over. Returns its result. */
  wait(slot: number): number {
    for (let turn = 0; turn < 1000; turn++) {
      const result = this.results.get(slot);
      if (result !== undefined) {
        this.results.delete(slot);
        this.table.release(slot);
        return result;
      }
      this.reactor.ring.submitAndWait(20);
      this.reactor.ring.reap(this.reactor);
    }
    throw new Error(`slot ${slot} does not end`);
  }

  run(request: BenchRequest): number {
    return this.wait(this.submit(request));
  }

  close(): void {
    this.engine.close();
    this.table.close();
    this.reactor.close();
    this.pool.close();
    unmap(this.memoryAddress, memoryBytes);
  }

  #spy(injected: Map<number, number>): void {
    const { ring } = this.reactor;
    const prepare = ring.prepare.bind(ring);
    ring.prepare = (op, fd, address, length, offset, opFlags, sqeFlags, source, token): boolean => {
      const entry = { op, address, length, offset, opFlags, sqeFlags, token };
      this.entries.push(entry);
      const result = op === RingOp.ASYNC_CANCEL ? undefined : this.inject(entry);
      if (result === undefined) {
        return prepare(op, fd, address, length, offset, opFlags, sqeFlags, source, token);
      }
      injected.set(token, result);
      return prepare(RingOp.NOP, -1, 0, 0, 0, 0, 0, source, token);
    };
  }
}
