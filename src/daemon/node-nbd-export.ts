// Hot: synchronous but for the promises that it gives.
/**
 * A block node as what an NBD server serves. Payload lies in memory that the node's engine reads and writes as it
 * is: between the socket and the disk nothing is copied but what the socket copies.
 */

import { SystemCallError } from '../base/errors.js';
import { allocationExtents } from '../block/allocation.js';
import { BlockFlag, BlockOp } from '../block/engine.js';
import { EngineClient, type EngineRequest } from '../block/engine-client.js';
import type { BlockNode } from '../block/node.js';
import { countLatency } from '../device/latency.js';
import type { IoError } from '../device/queue-host.js';
import { type DeviceStatistics, QueueField, SharedDeviceState } from '../device/statistics.js';
import { LendingPool } from '../memory/lending-pool.js';
import { Errno } from '../native/errno.js';
import { viewBytes } from '../native/fd.js';
import { mapAnonymous, unmap } from '../native/memory.js';
import type {
  Answer,
  NbdBlockSizes,
  NbdExport,
  NbdExtent,
  NbdPreparedWrite,
  NbdReadResult,
} from '../nbd/nbd-export.js';

const requestBytesMax = 32 << 20;
/** Memory for payload under way. What was never used costs nothing. */
const poolBytes = 64 << 20;
/** The least that clients should write at once, lest the disk below reads and merges. */
const preferredBlockSize = 4096;

export class NodeNbdExport implements NbdExport {
  readonly blockSizes: NbdBlockSizes;
  readonly fua = true;
  /** One engine serves all connections, and its flush covers what it completed. */
  readonly multiConn = true;
  readonly prepareWrite?: NonNullable<NbdExport['prepareWrite']>;
  readonly flush?: NonNullable<NbdExport['flush']>;
  readonly trim?: NonNullable<NbdExport['trim']>;
  readonly writeZeroes?: NonNullable<NbdExport['writeZeroes']>;
  readonly #node: BlockNode;
  readonly #client: EngineClient;
  readonly #address: number;
  readonly #memory: Uint8Array;
  readonly #pool: LendingPool;
  readonly counters = new SharedDeviceState({ queueCount: 1 });
  readonly #counters = this.counters.queue(0);
  readonly #latencies = this.counters.latencies(0);

  readonly #onIoError: ((error: IoError) => void) | undefined;

  constructor(
    node: BlockNode,
    options: { readonly writable: boolean; readonly onIoError?: (error: IoError) => void },
  ) {
    this.#node = node;
    this.#onIoError = options.onIoError;
    const minimum = node.limits.requestAlignment;
    this.blockSizes = {
      minimum,
      preferred: Math.max(minimum, preferredBlockSize),
      maximum: requestBytesMax,
    };
    this.#client = new EngineClient(node);
    this.#address = mapAnonymous(poolBytes);
    this.#memory = viewBytes(this.#address, poolBytes);
    this.#pool = new LendingPool(this.#memory);
    // A missing method is a missing ability, so methods are there as the node's features are.
    const { features } = node;
    if (features.flush) {
      this.flush = () => this.#flush();
    }
    if (options.writable) {
      this.prepareWrite = (offset, length, { fua }) => this.#prepareWrite(offset, length, fua);
    }
    if (options.writable && features.discard) {
      this.trim = (offset, length, { fua }) => this.#trim(offset, length, fua);
    }
    if (options.writable && features.writeZeroes) {
      this.writeZeroes = (offset, length, { fua, mayUnmap }) => {
        const unmaps = mayUnmap && features.writeZeroesMayUnmap;
        const flags = (fua ? BlockFlag.FUA : 0) | (unmaps ? BlockFlag.MAY_UNMAP : 0);
        this.#counters[QueueField.UNMAPS] += 1;
        return this.#request({ op: BlockOp.WRITE_ZEROES, flags, offset, length });
      };
    }
  }

  get size(): number {
    return this.#node.size;
  }

  get statistics(): DeviceStatistics {
    this.#counters[QueueField.IN_FLIGHT] = this.#client.inFlight;
    return this.counters.total();
  }

  async read(offset: number, length: number): Promise<NbdReadResult> {
    const taken = this.#pool.take(length);
    const bytes = taken instanceof Uint8Array ? taken : await taken;
    this.#counters[QueueField.READS] += 1;
    try {
      const address = this.#addressOf(bytes);
      await this.#request({ op: BlockOp.READ, offset, length, address });
    } catch (error) {
      this.#pool.release(bytes);
      throw error;
    }
    this.#counters[QueueField.READ_BYTES] += length;
    return { parts: [bytes], release: () => this.#pool.release(bytes) };
  }

  blockStatus(offset: number, length: number): Promise<NbdExtent[]> {
    return allocationExtents(this.#client, { offset, length });
  }

  /** See BlockExport. */
  drained(change: () => Promise<void>, timeoutMs?: number): Promise<void> {
    return this.#client.drained(change, timeoutMs);
  }

  /**
   * Gives the memory back when no request uses it any more. Throws TIMEOUT when one still may: then the memory
   * stays. No client is connected any more.
   */
  async close(timeoutMs: number): Promise<void> {
    await this.#client.close(timeoutMs);
    unmap(this.#address, poolBytes);
  }

  #prepareWrite(offset: number, length: number, fua: boolean): Answer<NbdPreparedWrite> {
    const taken = this.#pool.take(length);
    return taken instanceof Uint8Array
      ? this.#preparedWrite(offset, taken, fua)
      : taken.then((bytes) => this.#preparedWrite(offset, bytes, fua));
  }

  #preparedWrite(offset: number, buffer: Uint8Array, fua: boolean): NbdPreparedWrite {
    return {
      buffer,
      submit: () => this.#write(offset, buffer, fua),
      cancel: () => this.#pool.release(buffer),
    };
  }

  async #write(offset: number, buffer: Uint8Array, fua: boolean): Promise<void> {
    this.#counters[QueueField.WRITES] += 1;
    try {
      const flags = fua ? BlockFlag.FUA : 0;
      const request = { op: BlockOp.WRITE, flags, offset, length: buffer.length };
      await this.#request({ ...request, address: this.#addressOf(buffer) });
    } finally {
      this.#pool.release(buffer);
    }
    this.#counters[QueueField.WRITE_BYTES] += buffer.length;
  }

  #flush(): Promise<void> {
    this.#counters[QueueField.FLUSHES] += 1;
    return this.#request({ op: BlockOp.FLUSH, offset: 0, length: 0 });
  }

  async #trim(offset: number, length: number, fua: boolean): Promise<void> {
    this.#counters[QueueField.UNMAPS] += 1;
    await this.#request({ op: BlockOp.DISCARD, offset, length });
    // No engine knows a durable discard.
    if (fua) {
      await this.#flush();
    }
  }

  #addressOf(bytes: Uint8Array): number {
    return this.#address + bytes.byteOffset - this.#memory.byteOffset;
  }

  async #request(request: EngineRequest): Promise<void> {
    const startMs = this.#latencies.timing[0] === 0 ? 0 : performance.now();
    try {
      await this.#client.request(request);
    } catch (error) {
      this.#counters[QueueField.ERRORS] += 1;
      const errno = error instanceof SystemCallError ? error.errno : Errno.EIO;
      this.#onIoError?.({ operation: request.op === BlockOp.READ ? 'read' : 'write', errno });
      throw error;
    }
    if (startMs !== 0) {
      countLatency(this.#latencies.blocks, request.op, (performance.now() - startMs) * 1000);
    }
  }
}
