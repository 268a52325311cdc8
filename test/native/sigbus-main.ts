/** The program of sigbus-guard.test.ts: cuts a file under its map and touches it. Says what it saw, if it lives. */
import { ftruncateSync } from 'node:fs';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { viewMemory } from '../../src/native/ffi.js';
import { createMemoryFile, mapAnonymous, mapFile, pageSize, unmap } from '../../src/native/memory.js';
import { type GuardedMemory, guardMemory } from '../../src/native/sigbus-guard.js';

const length = 16 * pageSize;

interface Region {
  readonly fd: number;
  readonly address: number;
}

function makeRegion(): Region {
  const fd = createMemoryFile('sigbus', length);
  const address = mapFile({ fd, length, offset: 0, readable: true, writable: true });
  bytes(address).fill(0x5a);
  return { fd, address };
}

function bytes(address: number): Uint8Array {
  return new Uint8Array(viewMemory(address, length));
}

function cut({ fd }: Region): void {
  ftruncateSync(fd, 0);
}

/** Sums all of it: 0 once it is zeroes. */
function sum(address: number): number {
  return bytes(address).reduce((total, byte) => total + byte, 0);
}

function inWorker(work: object): Promise<unknown> {
  const worker = new Worker(new URL(import.meta.url), { workerData: work });
  return new Promise((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
}

async function onThread(): Promise<void> {
  const { parentPort } = await import('node:worker_threads');
  const { touch, guard } = workerData as { touch?: number; guard?: number };
  if (guard !== undefined) {
    guardMemory({ address: guard, length });
  }
  parentPort?.postMessage(touch === undefined ? 0 : sum(touch));
}

const scenarios: Record<string, () => Promise<unknown>> = {
  async main() {
    const [cutOne, whole] = [makeRegion(), makeRegion()];
    const guards = [cutOne, whole].map(({ address }) => guardMemory({ address, length }));
    cut(cutOne);
    const sums = [sum(cutOne.address), sum(whole.address)];
    bytes(cutOne.address)[length - 1] = 7;
    return { sums, written: sum(cutOne.address), damaged: damagedOf(guards) };
  },
  async worker() {
    const region = makeRegion();
    const guard = guardMemory({ address: region.address, length });
    cut(region);
    return { sums: [await inWorker({ touch: region.address })], damaged: damagedOf([guard]) };
  },
  /** Each thread has its own instance of the module, and the process has one handler. */
  async 'guards of two threads'() {
    const [ours, theirs] = [makeRegion(), makeRegion()];
    const guard = guardMemory({ address: ours.address, length });
    await inWorker({ guard: theirs.address });
    cut(ours);
    cut(theirs);
    return { sums: [sum(theirs.address), sum(ours.address)], damaged: damagedOf([guard]) };
  },
  async 'system calls'() {
    const region = makeRegion();
    const guard = guardMemory({ address: region.address, length });
    cut(region);
    const { libcCalls, errno } = await import('../../src/native/ffi.js');
    const { fd } = makeRegion();
    const result = libcCalls.pwrite(fd, region.address, 4096, 0);
    return { sums: [result, errno()], damaged: damagedOf([guard]) };
  },
  async 'many at once'() {
    const guards: GuardedMemory[] = [];
    let error: unknown;
    for (let n = 0; n < 5000 && error === undefined; n++) {
      try {
        guards.push(guardMemory({ address: (n + 1) * 2 ** 30, length: 1 }));
      } catch (thrown) {
        error = (thrown as { code: string }).code;
      }
    }
    guards.pop()?.release();
    const region = makeRegion();
    const last = guardMemory({ address: region.address, length });
    cut(region);
    return { sums: [guards.length, error, sum(region.address)], damaged: damagedOf([last]) };
  },
  async 'no guard'() {
    const region = makeRegion();
    cut(region);
    return sum(region.address);
  },
  async 'another guard'() {
    const region = makeRegion();
    guardMemory({ address: mapAnonymous(length), length });
    guardMemory({ address: region.address - length, length });
    guardMemory({ address: region.address + length, length });
    cut(region);
    return sum(region.address);
  },
  async released() {
    const region = makeRegion();
    guardMemory({ address: region.address, length }).release();
    cut(region);
    return sum(region.address);
  },
  async 'given again'() {
    const region = makeRegion();
    const first = guardMemory({ address: region.address, length });
    cut(region);
    const damaged = [sum(region.address), first.damaged];
    first.release();
    first.release();
    unmap(region.address, length);
    const next = makeRegion();
    const second = guardMemory({ address: next.address, length });
    return { sums: [...damaged, sum(next.address)], damaged: damagedOf([first, second]) };
  },
};

function damagedOf(guards: readonly GuardedMemory[]): boolean[] {
  return guards.map(({ damaged }) => damaged);
}

if (isMainThread) {
  console.log(JSON.stringify(await scenarios[process.argv[2]]()));
} else {
  await onThread();
}
