/** Messages: their order and ids, answers, time limits, and what a process leaves unanswered. */
import { setTimeout as sleep } from 'node:timers/promises';
import {
  encodeDeviceName,
  encodeResponse,
  encodeU64,
  VduseIoctl,
  type VduseRequest,
  vduseMessageBytes,
} from '../../src/native/vduse-abi.js';
import { type CaseContext, type ConformanceCase, outcome } from './conformance-case.js';
import { ScriptedDevice } from './scripted-device.js';

function message(length = vduseMessageBytes): Uint8Array {
  return new Uint8Array(new ArrayBuffer(length));
}

function statusOf(request: VduseRequest): string | number {
  return request.type === 'set-status' ? request.status : request.type;
}

async function settled(work: Promise<void>): Promise<string> {
  try {
    await work;
    return 'done';
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}

async function order(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'order');
  context.expect('nothing to read', outcome(device.kernel.read(device.fd, message())), 'EAGAIN');
  device.watch();
  await device.kernel.addToBus('order');
  context.expect('attach', device.statuses(), '0 1 3 b f');
  const ids = device.requests.map((request) => request.id - device.requests[0].id);
  context.expect('ids', ids, [0, 1, 2, 3, 4]);
  context.expect('the first id', device.requests[0].id, 0);
  device.requests.length = 0;
  await device.kernel.removeFromBus('order');
  context.expect('detach', device.statuses(), '0 1');
  context.expect('ids go on', device.requests[0].id, 5);
  device.requests.length = 0;
  await device.kernel.addToBus('order');
  context.expect('attach again', device.statuses(), '0 1 3 b f');
}

async function answers(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'answers');
  const attached = device.kernel.addToBus('answers');
  await waitForMessage();
  context.expect('a short buffer', outcome(device.kernel.read(device.fd, message(151))), 'EINVAL');
  context.expect('no room', outcome(device.kernel.read(device.fd, message(1))), 'EINVAL');
  const request = device.read();
  if (request === undefined) {
    throw new Error('the message has gone');
  }
  context.expect('the message is still there', statusOf(request), 0);
  context.expect('read twice', outcome(device.kernel.read(device.fd, message())), 'EAGAIN');
  const write = (bytes: Uint8Array) => outcome(device.kernel.write(device.fd, bytes));
  const response = (id: number) => encodeResponse({ id, ok: true });
  context.expect('another id', write(response(request.id + 1)), 'ENOENT');
  context.expect('too short', write(response(request.id).slice(0, 151)), 'EINVAL');
  for (const at of [8, 15, 23]) {
    context.expect(`byte ${at} set`, write(response(request.id).fill(1, at, at + 1)), 'EINVAL');
  }
  const long = new Uint8Array(new ArrayBuffer(200));
  long.set(response(request.id));
  context.expect('a long answer', write(long), vduseMessageBytes);
  context.expect('twice', write(response(request.id)), 'ENOENT');
  const next = await device.nextRequest();
  context.expect('the next one', statusOf(next), 1);
  // Bytes behind the result are the answer's own and may hold anything.
  context.expect('an answer with a tail', write(response(next.id).fill(0xff, 24)), vduseMessageBytes);
  device.watch();
  await attached;
  context.expect('all of them', device.statuses(), '0 1 3 b f');

  async function waitForMessage(): Promise<void> {
    // Until a read of nothing says otherwise: a short buffer takes no message.
    await sleep(100);
  }
}

/** What the driver does when a step is refused. */
function refusal(status: number, expected: { statuses: string; attach: string }): ConformanceCase['run'] {
  return async (context) => {
    const device = ScriptedDevice.create(context, 'refusal');
    device.answer = (request) => (statusOf(request) === status ? 'failed' : 'ok');
    device.watch();
    const attached = await settled(device.kernel.addToBus('refusal'));
    context.expect('attach', attached, expected.attach);
    context.expect('messages', device.statuses(), expected.statuses);
    context.expect('on the bus', device.kernel.isOnBus('refusal'), true);
    const features = outcome(device.ioctl(VduseIoctl.DEV_GET_FEATURES, encodeU64(0n)));
    context.expect('the device goes on', features, 0);
  };
}

async function timeout(context: CaseContext): Promise<void> {
  const { kernel, shortTimeoutMs } = context.session({ shortTimeout: true });
  const device = ScriptedDevice.create(context, 'timeout');
  device.answer = () => 'none';
  device.watch();
  const started = performance.now();
  context.expect('attach', await settled(kernel.addToBus('timeout')), 'done');
  const took = performance.now() - started;
  context.expect('within its time', took > shortTimeoutMs * 0.9 && took < shortTimeoutMs * 3 + 500, true);
  context.expect('on the bus', kernel.isOnBus('timeout'), true);
  context.expect('messages', device.statuses(), '0');
  device.unwatch();
  const broken = () => outcome(device.ioctl(VduseIoctl.DEV_GET_FEATURES, encodeU64(0n)));
  context.expect('broken', broken(), 'EPERM');
  context.expect('an unknown ioctl', outcome(device.ioctl(0x817f, null)), 'EPERM');
  context.expect('read', outcome(kernel.read(device.fd, message())), 'EAGAIN');
  const late = device.respond(device.requests[0], 'ok');
  context.expect('a late answer', outcome(late), 'ENOENT');
  device.close();
  device.open();
  context.expect('broken for the next one', broken(), 'EPERM');
  if (kernel.isOnBus('timeout')) {
    await kernel.removeFromBus('timeout');
  }
  context.expect('nothing is said at detach', outcome(kernel.read(device.fd, message())), 'EAGAIN');
  context.expect('broken off the bus', broken(), 'EPERM');
  device.close();
  const name = encodeDeviceName('timeout');
  const destroyed = outcome(kernel.ioctl(device.control, VduseIoctl.DESTROY_DEV, name));
  context.expect('destroy', destroyed, 0);
  // The name is free, and a new device of it works.
  const again = ScriptedDevice.create(context, 'timeout');
  context.expect('a new one', outcome(again.ioctl(VduseIoctl.DEV_GET_FEATURES, encodeU64(0n))), 0);
  device.destroy = async () => {};
}

async function reopened(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'reopened');
  const attached = device.kernel.addToBus('reopened');
  const first = await device.nextRequest();
  device.close();
  device.open();
  const again = device.read();
  context.expect('handed to the next opener', again?.id === first.id, true);
  context.expect('what it was', again === undefined ? 'nothing' : statusOf(again), 0);
  device.close();
  device.open();
  let readable = 0;
  const watcher = device.kernel.watch(device.fd, () => {
    readable++;
  });
  await sleep(50);
  watcher.close();
  context.expect('and it can be read', readable > 0, true);
  device.watch();
  await attached;
  context.expect('all of them', device.statuses(), '0 0 0 1 3 b f');
  const info = device.queueInfo(0);
  device.close();
  context.expect('on the bus without a process', device.kernel.isOnBus('reopened'), true);
  device.open();
  const after = device.queueInfo(0);
  context.expect('queues stay', JSON.stringify(after) === JSON.stringify(info) && after.ready, true);
  const map = device.iotlb(0n, 0xffff_ffff_ffff_ffffn);
  context.expect('maps stay', typeof map === 'number' ? outcome(map) : map.access, 3);
}

async function closedMeanwhile(context: CaseContext): Promise<void> {
  const device = ScriptedDevice.create(context, 'closed');
  device.close();
  const attached = device.kernel.addToBus('closed');
  await sleep(100);
  device.open();
  device.watch();
  await attached;
  context.expect('messages wait for an opener', device.statuses(), '0 1 3 b f');
}

async function queueState(context: CaseContext): Promise<void> {
  const session = context.session();
  const device = ScriptedDevice.create(context, 'state');
  device.watch();
  await device.kernel.addToBus('state');
  device.requests.length = 0;
  device.availIndex = 0xabcd;
  const found = (await session.queueState('state', 0)) ?? 'none';
  context.expect('where the queue stands', found, 0xabcd);
  const asked = device.requests.filter((request) => request.type === 'get-vq-state');
  context.expect('one message', asked.length, 1);
  context.expect('for the queue', asked[0]?.index ?? -1, 0);
  device.answer = (request) => (request.type === 'get-vq-state' ? 'failed' : 'ok');
  context.expect('refused', (await session.queueState('state', 0)) ?? 'none', 'none');
}

export const messageCases: readonly ConformanceCase[] = [
  { name: 'order of messages', run: order },
  { name: 'answers', run: answers },
  {
    name: 'refused ACKNOWLEDGE',
    run: refusal(1, { statuses: '0 1 2 a e', attach: 'done' }),
  },
  {
    name: 'refused FEATURES_OK',
    run: refusal(0xb, { statuses: '0 1 3 b 83', attach: 'done' }),
  },
  {
    name: 'refused DRIVER_OK',
    run: refusal(0xf, { statuses: '0 1 3 b f f', attach: 'done' }),
  },
  { name: 'message timeout', run: timeout },
  { name: 'unanswered messages', run: reopened },
  { name: 'messages without an opener', run: closedMeanwhile },
  { name: 'GET_VQ_STATE', run: queueState },
];
