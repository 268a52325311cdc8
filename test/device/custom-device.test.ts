/** A device of the user's own: what its function gets and gives, and what becomes of its faults and its driver's. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { CustomDevice, type DeviceDefinition } from '../../src/device/custom/custom-device.js';
import type { DeviceRequest } from '../../src/device/custom/custom-requests.js';
import { FrontEnd, type FrontEndOptions } from '../support/front-end.js';
import { untouched } from '../support/front-end-memory.js';
import { makeTestPool } from '../support/leftovers.js';
import { until, within } from '../support/within.js';

const pool = makeTestPool({ size: 1 });

const definition = (changes: Partial<DeviceDefinition> = {}): DeviceDefinition => ({
  deviceId: 42,
  queueCount: 2,
  queueSize: 16,
  onRequest: ({ data }) => data.map((byte) => byte ^ 0xff),
  ...changes,
});

async function start(
  changes: Partial<DeviceDefinition> = {},
  options: FrontEndOptions = {},
): Promise<{ device: CustomDevice; frontEnd: FrontEnd }> {
  const device = new CustomDevice(definition(changes), pool);
  return { device, frontEnd: await new FrontEnd(device, { dataBytes: 1 << 20, ...options }).activate() };
}

const text = (value: string): Uint8Array => new TextEncoder().encode(value);

describe('requests', () => {
  test('arrive whole, with their queue and features, and their answer fills the buffers in order', async () => {
    const seen: DeviceRequest[] = [];
    const { frontEnd } = await start({
      features: 1n << 3n,
      onRequest: async (request) => {
        seen.push(request);
        return text('0123456789');
      },
    });
    const readable = [text('ab'), new Uint8Array(0), text('cde')];
    const reply = await frontEnd.queues[1].exchange({ readable, writable: [4, 3, 8] });
    assert.equal(reply.written, 10);
    assert.deepEqual([...reply.data], [...text('0123456789'), ...new Uint8Array(5).fill(untouched)]);
    const [{ data, ...rest }] = seen;
    assert.equal(new TextDecoder().decode(data), 'abcde');
    assert.deepEqual(rest, { queue: 1, features: frontEnd.features, writableBytes: 15 });
    assert.equal((frontEnd.features >> 3n) & 1n, 1n);
    await frontEnd.close();
  });

  test('an answer that is too long is cut, none is an empty one', async () => {
    const { frontEnd } = await start({
      onRequest: ({ data }) => (data.length === 0 ? undefined : text('too long')),
    });
    const long = await frontEnd.queues[0].exchange({ readable: [text('x')], writable: [1, 2] });
    assert.deepEqual([long.written, new TextDecoder().decode(long.data)], [3, 'too']);
    const none = await frontEnd.queues[0].exchange({ readable: [], writable: [4] });
    assert.deepEqual([none.written, [...none.data]], [0, [untouched, untouched, untouched, untouched]]);
    const out = await frontEnd.queues[0].exchange({ readable: [text('x')], writable: [] });
    assert.equal(out.written, 0);
    await frontEnd.close();
  });

  test('an answer may be a part of a larger buffer', async () => {
    const { frontEnd } = await start({ onRequest: () => text('xxanswerxx').subarray(2, 8) });
    const { data } = await frontEnd.queues[0].exchange({ readable: [], writable: [6] });
    assert.equal(new TextDecoder().decode(data), 'answer');
    await frontEnd.close();
  });

  test('do not wait for earlier ones', async () => {
    const held = new Map<number, () => void>();
    const { frontEnd } = await start({
      onRequest: async ({ data }) => {
        await new Promise<void>((resolve) => held.set(data[0], resolve));
        return data;
      },
    });
    const replies = [0, 1, 2].map((n) =>
      frontEnd.queues[0].exchange({ readable: [Uint8Array.of(n)], writable: [1] }),
    );
    await until('all three requests', () => held.size === 3);
    for (const n of [1, 2, 0]) {
      held.get(n)?.();
      assert.deepEqual([...(await replies[n]).data], [n]);
    }
    await frontEnd.close();
  });

  test('more than the queue holds are all answered', async () => {
    const { frontEnd } = await start();
    const replies = await Promise.all(
      Array.from({ length: 300 }, (_, n) =>
        frontEnd.queues[n % 2].exchange({ readable: [Uint8Array.of(n & 0xff, n >> 8)], writable: [2] }),
      ),
    );
    replies.forEach(({ data }, n) => {
      assert.deepEqual([...data], [~n & 0xff, ~(n >> 8) & 0xff]);
    });
    await frontEnd.close();
  });
});

describe('faults of the function', () => {
  test('thrown or rejected, end the request with nothing and are told', async () => {
    const told: unknown[] = [];
    const { frontEnd } = await start({
      onRequest: ({ data }) => {
        if (data[0] === 0) {
          throw new Error('thrown');
        }
        return Promise.reject(new Error('rejected'));
      },
      onError: (error) => told.push((error as Error).message),
    });
    for (const byte of [0, 1]) {
      const { written, data } = await frontEnd.queues[0].exchange({
        readable: [Uint8Array.of(byte)],
        writable: [1],
      });
      assert.deepEqual([written, data[0]], [0, untouched]);
    }
    assert.deepEqual(told, ['thrown', 'rejected']);
    await frontEnd.close();
  });

  test('an answer that is no bytes is one of them', async () => {
    const told: unknown[] = [];
    const answers: unknown[] = [
      'text',
      7,
      null,
      { length: 4 },
      [1, 2],
      new Uint16Array(2),
      new ArrayBuffer(4),
    ];
    const { frontEnd } = await start({
      onRequest: ({ data }) => answers[data[0]] as Uint8Array,
      onError: (error) => told.push(error),
    });
    for (const n of answers.keys()) {
      const { written, data } = await within(2000, `an end of request ${n}`, () =>
        frontEnd.queues[0].exchange({ readable: [Uint8Array.of(n)], writable: [4] }),
      );
      assert.deepEqual([written, [...data]], [0, new Array(4).fill(untouched)], `answer ${n}`);
    }
    assert.equal(told.length, answers.length);
    assert.ok(told.every((error) => error instanceof TypeError));
    await frontEnd.close();
  });
});

test('a request longer than memory is an error of its driver: the queue stops, the process goes on', async () => {
  const { device, frontEnd } = await start({ queueSize: 1024 }, { dataBytes: 64 << 20, tableEntries: 1024 });
  const told = new Promise<string>((resolve) => {
    device.setListener({ onConfigChange() {}, onMemoryMiss() {}, onNeedsReset: resolve });
  });
  // 100 times the same 32 MiB.
  const address = frontEnd.memory.allocate(32 << 20);
  frontEnd.queues[0].submitRaw(new Array(100).fill({ address, length: 32 << 20 }));
  assert.match(await within(5000, 'a word of the device', () => told), /^queue 0: .*too long/);
  const { written } = await frontEnd.queues[1].exchange({ readable: [text('x')], writable: [1] });
  assert.equal(written, 1);
  await frontEnd.close();
});

describe('a stop', () => {
  test('ends what does not settle with nothing, and a late answer goes nowhere', async () => {
    const settle: ((answer: Uint8Array) => void)[] = [];
    const { frontEnd } = await start({
      onRequest: () => new Promise((resolve) => settle.push(resolve)),
    });
    const first = frontEnd.queues[0].submit({ readable: [text('x')], writable: [8] });
    await until('the first request', () => settle.length === 1);
    const started = performance.now();
    const { drained, availIndices } = await frontEnd.quiesce(400);
    assert.deepEqual([drained, availIndices.get(0)], [true, 1]);
    assert.ok(performance.now() - started < 390);
    assert.equal((await first.done).written, 0);
    // The next request has the same head.
    await frontEnd.activate();
    const second = frontEnd.queues[0].submit({ readable: [text('y')], writable: [8] });
    await until('the second request', () => settle.length === 2);
    settle[0](text('too late'));
    await sleep(10);
    assert.ok(second.writableBytes().every((byte) => byte === untouched));
    settle[1](text('in time'));
    assert.equal((await second.done).written, 7);
    await frontEnd.close();
  });

  test('is told first, so that the device can end what it keeps', async () => {
    const kept: (() => void)[] = [];
    const { frontEnd } = await start({
      onRequest: () => new Promise((resolve) => kept.push(() => resolve(text('bye')))),
      onStop: () => {
        for (const end of kept) {
          end();
        }
      },
    });
    const reply = frontEnd.queues[0].exchange({ readable: [], writable: [3] });
    await until('the request', () => kept.length === 1);
    assert.equal((await frontEnd.quiesce(5000)).drained, true);
    assert.equal(new TextDecoder().decode((await reply).data), 'bye');
    await frontEnd.close();
  });

  test('is one although the function that is told throws', async () => {
    const told: unknown[] = [];
    const { frontEnd } = await start({
      onStop: () => {
        throw new Error('no');
      },
      onError: (error) => told.push((error as Error).message),
    });
    assert.equal((await frontEnd.quiesce(100)).drained, true);
    assert.deepEqual(told, ['no']);
    await frontEnd.close();
  });
});

test('one queue stops, the other runs on', async () => {
  const { device, frontEnd } = await start();
  const [first, second] = frontEnd.activation().queues;
  const { availIndices } = await device.quiesce({ timeoutMs: 1000, queues: [first.index] });
  assert.deepEqual([...availIndices.keys()], [0]);
  const waiting = frontEnd.queues[0].exchange({ readable: [text('a')], writable: [1] });
  await frontEnd.queues[1].exchange({ readable: [text('b')], writable: [1] });
  assert.equal(frontEnd.queues[0].inFlight, 1);
  await device.activate({ ...frontEnd.activation(), queues: [first] });
  assert.equal((await waiting).written, 1);
  assert.equal(second.index, 1);
  await frontEnd.close();
});

test('the configuration space is what it was set to, and the driver is told', async () => {
  const { device, frontEnd } = await start({ config: text('first') });
  let changes = 0;
  device.setListener({ onConfigChange: () => changes++, onMemoryMiss() {}, onNeedsReset() {} });
  assert.deepEqual(device.config, text('first'));
  device.setConfig(text('other'));
  assert.deepEqual([device.config, changes], [text('other'), 1]);
  for (const other of ['', 'four', 'longer']) {
    assert.throws(() => device.setConfig(text(other)), { code: 'INVALID_ARGUMENT', message: /made with 5$/ });
  }
  assert.deepEqual([device.config, changes], [text('other'), 1]);
  await frontEnd.close();
});

test('a device that was closed has no function any more', async () => {
  const { device, frontEnd } = await start();
  await frontEnd.quiesce();
  device.close();
  await assert.rejects(frontEnd.activate(), /no device is registered/);
  await frontEnd.close();
});

test('numbers out of range are refused', () => {
  for (const changes of [
    { queueCount: 0 },
    { queueCount: 1025 },
    { queueCount: 1.5 },
    { queueSize: 0 },
    { queueSize: 3 },
    { queueSize: 65536 },
    { queueSize: 12.5 },
    { deviceId: 0 },
    { deviceId: -1 },
    { deviceId: 2 ** 32 },
    { config: new Uint8Array(4097) },
    // 2.8: packed rings are not served.
    { features: 1n << 34n },
    { features: 1n << 64n },
    { features: -1n },
  ]) {
    assert.throws(
      () => new CustomDevice(definition(changes), pool),
      { code: 'INVALID_ARGUMENT' },
      JSON.stringify(Object.keys(changes)),
    );
  }
});
