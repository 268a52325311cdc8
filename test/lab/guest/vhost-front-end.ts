/**
 * Drives a vhost-vDPA disk like the monitor of a virtual machine. A process of its own, because its calls wait for
 * the process that serves the device. Prints what it found as JSON.
 *
 *   node vhost-front-end.js DEVICE transfer | stuck
 */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorMessage } from '../../../src/base/errors.js';
import { viewBytes } from '../../../src/native/fd.js';
import {
  BlkFrontEnd,
  basicFeatures,
  extraIova,
  Operation,
  ringFeatures,
  slotBytes,
  slotCount,
} from './blk-front-end.js';
import { SharedMemory, VhostVdpaDevice } from './vhost-vdpa.js';

const [path, mode] = process.argv.slice(2);
const sectorsPerSlot = slotBytes / 512;

/** What slot-sized piece `piece` of the disk holds in generation `generation`. */
function content(piece: number, generation: number): Buffer {
  return Buffer.alloc(slotBytes, createHash('sha256').update(`${piece} ${generation}`).digest());
}

/** Writes `pieces` of the disk, reads them back and compares. */
function transfer(frontEnd: BlkFrontEnd, pieces: number, generation: number): void {
  for (const operation of [Operation.WRITE, Operation.READ]) {
    for (let first = 0; first < pieces; first += slotCount) {
      for (let slot = 0; slot < slotCount; slot++) {
        const data = frontEnd.slot(slot);
        if (operation === Operation.WRITE) {
          content(first + slot, generation).copy(data);
        } else {
          data.fill(0);
        }
        frontEnd.submit(slot, { operation, sector: (first + slot) * sectorsPerSlot });
      }
      frontEnd.kick();
      frontEnd.drain();
      for (let slot = 0; slot < slotCount && operation === Operation.READ; slot++) {
        if (!frontEnd.slot(slot).equals(content(first + slot, generation))) {
          throw new Error(`piece ${first + slot} of generation ${generation} reads back wrong`);
        }
      }
    }
  }
  frontEnd.submit(0, { operation: Operation.FLUSH, sector: 0 });
  frontEnd.kick();
  frontEnd.drain();
}

/** Memory comes and goes at one address while requests on other memory are in flight. */
function remap(device: VhostVdpaDevice, frontEnd: BlkFrontEnd, generation: number, rounds: number): number {
  let longestMs = 0;
  let extra: SharedMemory | undefined;
  for (let round = 0; round < rounds; round++) {
    for (let slot = 1; slot < slotCount; slot++) {
      frontEnd.slot(slot).fill(0);
      frontEnd.submit(slot, { operation: Operation.READ, sector: slot * sectorsPerSlot });
    }
    frontEnd.kick();
    const started = performance.now();
    const next = new SharedMemory(slotBytes);
    if (extra !== undefined) {
      device.unmap({ iova: extraIova, length: slotBytes });
      extra.close();
    }
    device.map({ iova: extraIova, address: next.address, length: slotBytes });
    longestMs = Math.max(longestMs, performance.now() - started);
    extra = next;
    frontEnd.drain();
    for (let slot = 1; slot < slotCount; slot++) {
      if (!frontEnd.slot(slot).equals(content(slot, generation))) {
        throw new Error(`round ${round}: piece ${slot}, read across a remap, is wrong`);
      }
    }
    // What the device reads from the new memory must be the new memory's.
    content(0, 1000 + round).copy(Buffer.from(viewBytes(extra.address, slotBytes).buffer));
    frontEnd.submit(0, { operation: Operation.WRITE, sector: 0, iova: extraIova });
    frontEnd.kick();
    frontEnd.drain();
    frontEnd.submit(0, { operation: Operation.READ, sector: 0 });
    frontEnd.kick();
    frontEnd.drain();
    if (!frontEnd.slot(0).equals(content(0, 1000 + round))) {
      throw new Error(`round ${round}: the device read other memory than what is mapped now`);
    }
  }
  device.unmap({ iova: extraIova, length: slotBytes });
  extra?.close();
  return longestMs;
}

function runTransfer(device: VhostVdpaDevice): object {
  const offered = device.features;
  const capacity = Number(device.config(0, 8).getBigUint64(0, true));
  const pieces = 64;
  let longestMs = 0;
  let interrupts = 0;
  let base = 0;
  for (const [generation, features] of [basicFeatures, basicFeatures | ringFeatures].entries()) {
    const frontEnd = new BlkFrontEnd(device, features & offered);
    transfer(frontEnd, pieces, generation);
    longestMs = Math.max(longestMs, remap(device, frontEnd, generation, 10));
    transfer(frontEnd, pieces, generation + 10);
    interrupts += frontEnd.takeInterrupt() ? 1 : 0;
    base = device.queueBase(0);
    if (base !== (frontEnd.submitted & 0xffff)) {
      throw new Error(`the queue would go on at ${base}, but ${frontEnd.submitted} requests were made`);
    }
    frontEnd.close();
  }
  return {
    deviceId: device.deviceId,
    features: `0x${offered.toString(16)}`,
    capacity,
    queueSizeMax: device.queueSizeMax,
    pieces,
    mebibytes: (4 * pieces * slotBytes * 2) / (1 << 20),
    longestRemapMs: Math.round(longestMs),
    interrupts,
    queueBase: base,
  };
}

/** More than a disk that takes a second for each can do within the message timeout, and not many more. */
const stuckRequests = 6;

/** Resets the device while the disk below it takes longer than a message may. */
async function runStuck(device: VhostVdpaDevice): Promise<object> {
  const frontEnd = new BlkFrontEnd(device, basicFeatures);
  for (let slot = 0; slot < stuckRequests; slot++) {
    frontEnd.slot(slot).fill(0xee);
    // Apart, or the block layer makes one request of them.
    frontEnd.submit(slot, { operation: Operation.READ, sector: 2 * slot * sectorsPerSlot });
  }
  frontEnd.kick();
  await sleep(500);
  const started = performance.now();
  let answer = 'ok';
  try {
    device.status = 0;
  } catch (error) {
    answer = errorMessage(error);
  }
  const resetMs = Math.round(performance.now() - started);
  const untouched = (): number => {
    let count = 0;
    for (let slot = 0; slot < stuckRequests; slot++) {
      count += frontEnd.slot(slot)[0] === 0xee ? 1 : 0;
    }
    return count;
  };
  const before = untouched();
  process.stdout.write('reset\n');
  await sleep(6000);
  return { answer, resetMs, writtenAfterReset: before - untouched(), status: device.status };
}

const device = new VhostVdpaDevice(path);
process.stdout.write('open\n');
const found = mode === 'stuck' ? await runStuck(device) : runTransfer(device);
device.close();
process.stdout.write(`${JSON.stringify(found)}\n`);
