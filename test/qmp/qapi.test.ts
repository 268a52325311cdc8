import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { z } from 'zod';
import { VduseError } from '../../src/base/errors.js';
import { nearest } from '../../src/qmp/nearest.js';
import { checkOptions, choice, compact, declare, struct, variants } from '../../src/qmp/qapi.js';

const options = declare((s) =>
  variants('driver', [
    struct({
      driver: z.literal(['file', 'host_device']),
      'node-name': s.str,
      cache: struct({ direct: s.bool.optional(), 'no-flush': s.bool.optional() }).optional(),
      aio: choice('threads', 'native').optional(),
      'read-only': s.bool.optional(),
      queues: s.uint16.optional(),
      id: s.uint32.optional(),
      size: s.size.optional(),
      delta: s.int.optional(),
    }),
    struct({ driver: z.literal('null-co'), size: s.size }),
  ]),
);

function failure(form: 'json' | 'keyval', input: unknown): { message: string; hint: string | undefined } {
  try {
    checkOptions(options[form], input);
  } catch (error) {
    assert.ok(error instanceof VduseError);
    assert.equal(error.code, 'INVALID_ARGUMENT');
    return { message: error.message, hint: error.hint };
  }
  assert.fail(`accepted: ${JSON.stringify(input)}`);
}

const file = { driver: 'file', 'node-name': 'a' };

describe('options of two forms', () => {
  it('are the same value', () => {
    const value = {
      driver: 'host_device' as const,
      'node-name': 'a',
      cache: { direct: true, 'no-flush': false },
      aio: 'native' as const,
      'read-only': false,
      queues: 16,
      id: 4294967295,
      size: 1536,
      delta: -5,
    };
    assert.deepEqual(checkOptions(options.json, value), value);
    assert.deepEqual(
      checkOptions(options.keyval, {
        driver: 'host_device',
        'node-name': 'a',
        cache: { direct: 'on', 'no-flush': 'no' },
        aio: 'native',
        'read-only': 'false',
        queues: '0x10',
        id: '4294967295',
        size: '1.5k',
        delta: '-5',
      }),
      value,
    );
  });

  it('count sizes with suffixes of powers of 1024', () => {
    const size = (text: string) => checkOptions(options.keyval, { driver: 'null-co', size: text });
    for (const [text, bytes] of [
      ['0', 0],
      ['512', 512],
      ['512b', 512],
      ['4k', 4096],
      ['4K', 4096],
      ['10G', 10 * 2 ** 30],
      ['0.5M', 2 ** 19],
      ['1T', 2 ** 40],
      ['0x200', 512],
    ] as const) {
      assert.deepEqual(size(text), { driver: 'null-co', size: bytes });
    }
    for (const text of ['', '-1', '1.5', 'k', '4kk', '16E', '1e3', ' 1']) {
      assert.throws(() => size(text), /Parameter 'size' expects a non-negative size/, text);
    }
  });

  it("are refused in QEMU's words", () => {
    const cases: ['json' | 'keyval', unknown, string][] = [
      ['json', {}, "Parameter 'driver' is missing"],
      ['json', { driver: 3 }, "Invalid parameter type for 'driver', expected: string"],
      ['json', { driver: 'qcow2' }, "Parameter 'driver' does not accept value 'qcow2'"],
      ['json', { driver: 'file' }, "Parameter 'node-name' is missing"],
      ['json', { ...file, 'node-name': 1 }, "Invalid parameter type for 'node-name', expected: string"],
      ['json', { ...file, cache: 1 }, "Invalid parameter type for 'cache', expected: object"],
      ['json', { ...file, cache: [] }, "Invalid parameter type for 'cache', expected: object"],
      [
        'json',
        { ...file, cache: { direct: 'on' } },
        "Invalid parameter type for 'cache.direct', expected: boolean",
      ],
      ['json', { ...file, cache: { dirct: true } }, "Parameter 'cache.dirct' is unexpected"],
      ['json', { ...file, aio: 'x' }, "Parameter 'aio' does not accept value 'x'"],
      ['json', { ...file, aio: 1 }, "Invalid parameter type for 'aio', expected: string"],
      ['json', { ...file, queues: '1' }, "Invalid parameter type for 'queues', expected: integer"],
      ['json', { ...file, queues: 1.5 }, "Invalid parameter type for 'queues', expected: integer"],
      ['json', { ...file, queues: -1 }, "Parameter 'queues' expects uint16_t"],
      ['json', { ...file, queues: 65536 }, "Parameter 'queues' expects uint16_t"],
      ['json', { ...file, id: 2 ** 32 }, "Parameter 'id' expects uint32_t"],
      ['json', { ...file, size: 2n ** 60n }, "Invalid parameter type for 'size', expected: integer"],
      // What is wrong is told before what is too much.
      ['json', { driver: 'file', foo: 1 }, "Parameter 'node-name' is missing"],
      ['json', { ...file, cache: { dirct: 1 }, aio: 'x', foo: 1 }, "Parameter 'cache.dirct' is unexpected"],
      ['keyval', { ...file, 'read-only': 'maybe' }, "Parameter 'read-only' expects 'on' or 'off'"],
      ['keyval', { ...file, queues: 'many' }, "Parameter 'queues' expects integer"],
      ['keyval', { ...file, queues: '65536' }, "Parameter 'queues' expects uint16_t"],
      ['keyval', { ...file, cache: 'x' }, "Invalid parameter type for 'cache', expected: object"],
      [
        'keyval',
        { ...file, 'node-name': { a: 'b' } },
        "Invalid parameter type for 'node-name', expected: string",
      ],
      ['keyval', { ...file, foo: 'x' }, "Parameter 'foo' is unexpected"],
    ];
    for (const [form, input, message] of cases) {
      assert.equal(failure(form, input).message, message);
    }
  });

  it('hint at what was meant', () => {
    assert.equal(failure('json', { ...file, cache: { dirct: true } }).hint, "did you mean 'cache.direct'?");
    assert.equal(failure('json', { ...file, direct: true }).hint, "did you mean 'cache.direct'?");
    assert.equal(failure('json', { ...file, readonly: true }).hint, "did you mean 'read-only'?");
    assert.match(
      failure('json', { ...file, xyzzy: true }).hint ?? '',
      /^known: driver, node-name, cache\.direct/,
    );
    assert.match(failure('json', { ...file, aio: 'x' }).hint ?? '', /^supported: .*\bnative\b/);
    assert.equal(failure('json', { driver: 'qcow2' }).hint, 'supported: file, host_device, null-co');
  });

  it('leave out what is undefined', () => {
    assert.deepEqual(compact({ a: 1, b: undefined, c: false }), { a: 1, c: false });
    assert.ok(!('b' in compact({ b: undefined })));
  });
});

describe('the nearest name', () => {
  it('is a slip away, or nothing', () => {
    const known = ['writable', 'queue-size', 'num-queues', 'cache.direct'];
    assert.equal(nearest('writeable', known), 'writable');
    assert.equal(nearest('wirtable', known), 'writable');
    assert.equal(nearest('queue-sizes', known), 'queue-size');
    assert.equal(nearest('direct', known), 'cache.direct');
    assert.equal(nearest('foo', known), undefined);
    // A distance takes time that grows with the square of the length.
    assert.equal(nearest('x'.repeat(64), ['x'.repeat(65)]), 'x'.repeat(65));
    assert.equal(nearest('x'.repeat(65), ['x'.repeat(66)]), undefined);
    assert.equal(nearest('', known), undefined);
  });
});
