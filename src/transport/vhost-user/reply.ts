/** Payloads of the answers to a front-end. */
import { CONFIG } from './protocol.js';

export function replyU64(value: bigint): Uint8Array {
  const reply = new Uint8Array(8);
  new DataView(reply.buffer).setBigUint64(0, value, true);
  return reply;
}

/** "A vring descriptor index for split virtqueues". */
export function replyState(index: number, availIndex: number): Uint8Array {
  const reply = new Uint8Array(8);
  const view = new DataView(reply.buffer);
  view.setUint32(0, index, true);
  view.setUint32(4, availIndex, true);
  return reply;
}

/** "Virtio device config space": the part that was asked for. */
export function replyConfig(
  request: { offset: number; length: number; flags: number },
  config: Uint8Array,
): Uint8Array {
  const { offset, length, flags } = request;
  const reply = new Uint8Array(CONFIG.bytes + length);
  const view = new DataView(reply.buffer);
  view.setUint32(CONFIG.offset, offset, true);
  view.setUint32(CONFIG.size, length, true);
  view.setUint32(CONFIG.flags, flags, true);
  // What the device does not have reads as zeroes: front-ends ask for their own structure's length.
  reply.set(config.subarray(offset, offset + length), CONFIG.bytes);
  return reply;
}
