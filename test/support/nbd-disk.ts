/** A node of the block driver nbd with a client of its engine, and memory for its requests. */
import assert from 'node:assert/strict';
import { silentLogger } from '../../src/base/log.js';
import { BlockOp } from '../../src/block/engine.js';
import { EngineClient } from '../../src/block/engine-client.js';
import type { BlockNode, BlockServices, NbdNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { viewBytes } from '../../src/native/fd.js';
import { mapAnonymous, unmap } from '../../src/native/memory.js';

const memoryBytes = 64 << 20;
const closeTimeoutMs = 5000;

function refuse(id: string): never {
  throw new Error(`there is no ${id}`);
}

export class NbdDisk {
  readonly node: BlockNode;
  readonly client: EngineClient;
  readonly memoryAddress = mapAnonymous(memoryBytes);
  readonly memory = viewBytes(this.memoryAddress, memoryBytes);
  #closed = false;

  static async open(
    options: Omit<NbdNodeOptions, 'driver' | 'nodeName'>,
    services: Partial<BlockServices> = {},
  ): Promise<NbdDisk> {
    return new NbdDisk(
      await openBlockNode({ driver: 'nbd', nodeName: 'n', ...options }, undefined, {
        secret: refuse,
        logger: silentLogger,
        ...services,
      }),
    );
  }

  private constructor(node: BlockNode) {
    this.node = node;
    this.client = new EngineClient(node);
  }

  /** Writes bytes from the disk's start on, in parts all at once, and sees that they come back. */
  async writeAndReadBack(data: Buffer, partBytes: number): Promise<void> {
    const parts = Array.from({ length: data.length / partBytes }, (_, n) => n * partBytes);
    await Promise.all(parts.map((at) => this.write(at, data.subarray(at, at + partBytes), { at })));
    await this.flush();
    this.memory.fill(0, 0, data.length);
    await Promise.all(parts.map((at) => this.read(at, partBytes, at)));
    assert.ok(data.equals(this.memory.subarray(0, data.length)));
  }

  /** Reads into the memory at `at`, and returns a copy. */
  async read(offset: number, length: number, at = 0): Promise<Buffer> {
    await this.client.request({ op: BlockOp.READ, offset, length, address: this.memoryAddress + at });
    return Buffer.from(this.memory.subarray(at, at + length));
  }

  async write(
    offset: number,
    bytes: Uint8Array,
    options: { flags?: number; at?: number } = {},
  ): Promise<void> {
    const { flags = 0, at = 0 } = options;
    this.memory.set(bytes, at);
    await this.client.request({
      op: BlockOp.WRITE,
      offset,
      length: bytes.length,
      address: this.memoryAddress + at,
      flags,
    });
  }

  flush(): Promise<void> {
    return this.client.request({ op: BlockOp.FLUSH, offset: 0, length: 0 });
  }

  discard(offset: number, length: number): Promise<void> {
    return this.client.request({ op: BlockOp.DISCARD, offset, length });
  }

  writeZeroes(offset: number, length: number, flags = 0): Promise<void> {
    return this.client.request({ op: BlockOp.WRITE_ZEROES, offset, length, flags });
  }

  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      await this.client.close(closeTimeoutMs);
      await this.node.close();
      unmap(this.memoryAddress, memoryBytes);
    }
  }
}
