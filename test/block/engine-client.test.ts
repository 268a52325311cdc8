import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { SystemCallError } from '../../src/base/errors.js';
import { allocationExtents, readsAsZeroes } from '../../src/block/allocation.js';
import { registerLocalDevice, unregisterLocalDevice } from '../../src/block/drivers/local-engine.js';
import { BlockOp } from '../../src/block/engine.js';
import { EngineClient } from '../../src/block/engine-client.js';
import type { BlockNode } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { viewBytes } from '../../src/native/fd.js';
import { mapAnonymous, unmap } from '../../src/native/memory.js';
import { releaseEventLoopReactor } from '../../src/reactor/event-loop-reactor.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { isVduseError } from '../support/vduse-error.js';

const memoryBytes = 1 << 20;
const timeoutMs = 20_000;

describe('requests on a node without a queue', () => {
  let folder: string;
  let node: BlockNode;
  let address: number;
  let bytes: Uint8Array;

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-engine-client-'));
    const filename = makeSparseFile(join(folder, 'image'), 8 << 20);
    node = await openBlockNode({ driver: 'file', nodeName: 'n', filename });
    address = mapAnonymous(memoryBytes);
    bytes = viewBytes(address, memoryBytes);
  });

  after(async () => {
    unmap(address, memoryBytes);
    await node.close();
    rmSync(folder, { recursive: true });
  });

  it('reads what was written, more of them at once than the engine takes', async () => {
    const client = new EngineClient(node);
    const count = 1000;
    bytes.forEach((_, at) => {
      bytes[at] = at >> 9;
    });
    const each = (op: BlockOp, at: number): Promise<unknown>[] =>
      Array.from({ length: count }, (_, n) =>
        client.request({ op, offset: at + n * 512, length: 512, address: address + n * 512 }),
      );
    await Promise.all(each(BlockOp.WRITE, 4096));
    await client.request({ op: BlockOp.FLUSH, offset: 0, length: 0 });
    bytes.fill(0);
    await Promise.all(each(BlockOp.READ, 4096));
    for (let n = 0; n < count; n++) {
      assert.equal(bytes[n * 512 + 511], n & 0xff);
    }
    await client.request({ op: BlockOp.DISCARD, offset: 0, length: 1 << 20 });
    await client.close(timeoutMs);
  });

  it('tells the system error of a request that fails', async () => {
    const client = new EngineClient(node);
    await assert.rejects(
      client.request({ op: BlockOp.READ, offset: node.size, length: 512, address }),
      (error) => error instanceof SystemCallError && error.errnoName === 'EIO',
    );
    await client.close(timeoutMs);
  });

  it('close waits for what is in flight', async () => {
    const client = new EngineClient(node);
    const ended: string[] = [];
    const request = client
      .request({ op: BlockOp.READ, offset: 0, length: memoryBytes, address })
      .then(() => ended.push('request'));
    await client.close(timeoutMs).then(() => ended.push('close'));
    await request;
    assert.deepEqual(ended, ['request', 'close']);
  });

  it('gives up on requests that never end, and says so', async () => {
    const key = registerLocalDevice({ size: 512, read: () => new Promise(() => undefined) });
    const client = new EngineClient({ ...node, engine: { kind: 'local', key } });
    void client.request({ op: BlockOp.READ, offset: 0, length: 512, address });
    await assert.rejects(client.close(5), isVduseError('TIMEOUT'));
    assert.equal(client.inFlight, 1);
    unregisterLocalDevice(key);
    // It is never given back: the test alone lets the process end.
    releaseEventLoopReactor();
  });

  it('tells holes from data, in whole blocks', async () => {
    const filename = join(folder, 'sparse');
    const fd = openSync(filename, 'w');
    writeSync(fd, Buffer.alloc(65536, 1), 0, 65536, 1 << 20);
    closeSync(fd);
    truncateSync(filename, 4 << 20);
    const sparse = new EngineClient(await openBlockNode({ driver: 'file', nodeName: 's', filename }));
    const hole = { hole: true, zero: true };
    const data = { hole: false, zero: false };
    const extents = await allocationExtents(sparse, { offset: 512, length: (4 << 20) - 512 });
    assert.deepEqual(extents, [
      { length: (1 << 20) - 512, ...hole },
      { length: 65536, ...data },
      { length: (3 << 20) - 65536, ...hole },
    ]);
    assert.deepEqual(await allocationExtents(sparse, { offset: 1 << 20, length: 512 }), [
      { length: 512, ...data },
    ]);
    assert.equal(await readsAsZeroes(sparse), false);
    await sparse.close(1000);
    await sparse.node.close();
  });
});
