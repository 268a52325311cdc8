/** Compares what two nodes hold, which nobody writes meanwhile: `vduse convert --verify`. */
import { allocationExtents } from '../block/allocation.js';
import { BlockOp } from '../block/engine.js';
import { EngineClient } from '../block/engine-client.js';
import type { BlockNode } from '../block/node.js';
import { isEqual, mapAnonymous, unmap } from '../native/memory.js';

export interface CompareOptions {
  readonly source: BlockNode;
  /** At least as long; what is beyond the source's end does not count. */
  readonly target: BlockNode;
  /** Bytes that were compared, holes included. */
  readonly onProgress?: (done: number) => void;
  readonly signal?: AbortSignal;
}

/** Parts under way at once, and the bytes of each. */
const workers = 4;
const partBytes = 1 << 20;
const sectorBytes = 512;
const closeTimeoutMs = 10_000;

/**
 * The offset of a sector that differs, the first of those that were met; undefined when all are equal. Throws what
 * the nodes' requests end with, and the signal's reason.
 */
export async function compareNodes(options: CompareOptions): Promise<number | undefined> {
  const { source, target, signal } = options;
  const memory = mapAnonymous(2 * workers * partBytes);
  const clients: EngineClient[] = [];
  let next = 0;
  let done = 0;
  let difference: number | undefined;
  try {
    clients.push(new EngineClient(source), new EngineClient(target));
    const work = async (address: number): Promise<void> => {
      while (next < source.size && difference === undefined && signal?.aborted !== true) {
        const offset = next;
        const length = Math.min(partBytes, source.size - offset);
        next += length;
        const hollow = await Promise.all(clients.map((client) => isZero(client, offset, length)));
        if (hollow.includes(false)) {
          const addresses = [address, address + partBytes];
          await Promise.all(
            clients.map((client, n) =>
              client.request({ op: BlockOp.READ, offset, length, address: addresses[n] }),
            ),
          );
          const at = differenceAt(address, address + partBytes, length);
          difference ??= at === undefined ? undefined : offset + at;
        }
        done += length;
        options.onProgress?.(done);
      }
    };
    const results = await Promise.allSettled(
      Array.from({ length: workers }, (_, n) => work(memory + 2 * n * partBytes)),
    );
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) {
      throw failed.reason;
    }
    signal?.throwIfAborted();
    return difference;
  } finally {
    await Promise.all(clients.map((client) => client.close(closeTimeoutMs)));
    unmap(memory, 2 * workers * partBytes);
  }
}

/** Whether a range is known to be zeroes without reading it. */
async function isZero(client: EngineClient, offset: number, length: number): Promise<boolean> {
  const extents = await allocationExtents(client, { offset, length });
  const zeroes = extents.reduce((sum, extent) => sum + (extent.zero ? extent.length : 0), 0);
  return zeroes === length;
}

/** Where two ranges differ first, in sectors. */
function differenceAt(a: number, b: number, length: number): number | undefined {
  if (isEqual(a, b, length)) {
    return undefined;
  }
  let at = 0;
  while (isEqual(a + at, b + at, Math.min(sectorBytes, length - at))) {
    at += sectorBytes;
  }
  return at;
}
