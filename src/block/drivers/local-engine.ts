/**
 * Runs a user's BlockDevice. Its promises need the event loop, so its queues live on the main thread. Data is
 * copied between guest memory and the driver's buffers: user code may keep a buffer, and a view of guest
 * memory that has been unmapped would end the process.
 */
import { Errno } from '../../native/errno.js';
import { addressOf } from '../../native/ffi.js';
import { copyMemory } from '../../native/memory.js';
import type { Reactor } from '../../reactor/reactor.js';
import type { BlockDevice } from '../block-device.js';
import { type BlockCompletionSink, type BlockEngine, BlockFlag, BlockOp } from '../engine.js';
import type { RequestTable } from '../request-table.js';

/** The devices of the nodes that are open, by the number in their LocalEngineSpec. */
const devices = new Map<number, BlockDevice>();
let nextKey = 1;

export function registerLocalDevice(device: BlockDevice): number {
  devices.set(nextKey, device);
  return nextKey++;
}

export function unregisterLocalDevice(key: number): void {
  devices.delete(key);
}

export class LocalEngine implements BlockEngine {
  readonly #device: BlockDevice;
  readonly #table: RequestTable;
  readonly #sink: BlockCompletionSink;
  readonly #reactor: Reactor;
  #abandoned = false;

  constructor(key: number, table: RequestTable, sink: BlockCompletionSink, reactor: Reactor) {
    const device = devices.get(key);
    if (device === undefined) {
      throw new Error(`no block driver is registered under ${key} on this thread`);
    }
    this.#device = device;
    this.#table = table;
    this.#sink = sink;
    this.#reactor = reactor;
  }

  submit(slot: number): void {
    this.#run(slot).then(
      () => this.#complete(slot, 0),
      (error: unknown) => this.#complete(slot, errorResult(error)),
    );
  }

  /** Promises can't be cancelled; the queue gives up on them when its time is over. */
  cancel(): void {}

  abandon(): void {
    this.#abandoned = true;
  }

  close(): void {}

  async #run(slot: number): Promise<void> {
    const table = this.#table;
    const device = this.#device;
    const offset = table.offset[slot];
    const length = table.length[slot];
    switch (table.op[slot]) {
      case BlockOp.READ: {
        const buffer = new Uint8Array(new ArrayBuffer(length));
        await device.read(offset, buffer);
        if (buffer.length !== length) {
          throw new Error('the block driver gave the buffer of a read away');
        }
        if (!this.#abandoned) {
          this.#copy(slot, buffer, false);
        }
        return;
      }
      case BlockOp.WRITE: {
        const buffer = new Uint8Array(new ArrayBuffer(length));
        this.#copy(slot, buffer, true);
        await device.write?.(offset, buffer);
        break;
      }
      case BlockOp.FLUSH:
        await device.flush?.();
        return;
      case BlockOp.DISCARD:
        await device.discard?.(offset, length);
        return;
      default:
        await device.writeZeroes?.(offset, length);
        break;
    }
    if ((table.flags[slot] & BlockFlag.FUA) !== 0) {
      await device.flush?.();
    }
  }

  #copy(slot: number, buffer: Uint8Array, fromGuest: boolean): void {
    let at = addressOf(buffer);
    for (let n = 0; n < this.#table.segmentCount[slot]; n++) {
      const guest = this.#table.segmentAddress(slot, n);
      const length = this.#table.segmentLength(slot, n);
      if (fromGuest) {
        copyMemory(at, guest, length);
      } else {
        copyMemory(guest, at, length);
      }
      at += length;
    }
  }

  #complete(slot: number, result: number): void {
    this.#sink.onBlockComplete(slot, result);
    this.#reactor.wake();
  }
}

/** Node's system errors carry a negative errno; everything else is an I/O error. */
function errorResult(error: unknown): number {
  if (error instanceof Error && 'errno' in error && typeof error.errno === 'number' && error.errno !== 0) {
    return -Math.abs(error.errno);
  }
  return -Errno.EIO;
}
