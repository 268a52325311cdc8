/** A thread that writes descriptors, good and bad, over tables that another thread is reading. */
import { parentPort, workerData } from 'node:worker_threads';
import { viewBytes } from '../../src/native/fd.js';

interface Work {
  readonly stop: Int32Array;
  readonly parts: readonly { readonly address: number; readonly length: number }[];
  readonly tableStart: number;
  readonly borders: readonly number[];
}

const { stop, parts, tableStart, borders } = workerData as Work;
const views = parts.map((part) => {
  const bytes = viewBytes(part.address, part.length);
  return new DataView(bytes.buffer, 0, part.length);
});
const pick = (count: number) => Math.floor(Math.random() * count);

function scribble(view: DataView): void {
  const at = 16 * pick(view.byteLength / 16);
  const address =
    pick(8) === 0 ? tableStart + 16 * pick(8) : Math.max(0, borders[pick(borders.length)] + pick(40) - 20);
  const kind = pick(8);
  view.setBigUint64(at, BigInt(address), true);
  view.setUint32(at + 8, kind === 0 ? 16 * pick(9) : pick(60), true);
  view.setUint16(at + 12, kind === 0 ? 4 : kind & 3, true);
  view.setUint16(at + 14, pick(9), true);
}

parentPort?.postMessage('ready');
while (Atomics.load(stop, 0) === 0) {
  for (const view of views) {
    scribble(view);
  }
}
