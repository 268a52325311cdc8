import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { PlainOptions, type PlainStep } from '../../src/nbd/plain-options.js';
import { propertyRuns } from '../support/property.js';

const STARTTLS = 5;
const TLS_REQD = 0x8000_0005;

function flags(value = 3): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function option(number: number, data: Uint8Array = Buffer.alloc(0), length = data.length): Buffer {
  const header = Buffer.alloc(16);
  header.writeBigUInt64BE(0x49484156454f5054n);
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(length, 12);
  return Buffer.concat([header, data]);
}

/** The types of the replies, option by option. */
function replies(step: PlainStep): [number, number][] {
  const bytes = Buffer.from(step.replies);
  return Array.from({ length: bytes.length / 20 }, (_, n) => [
    bytes.readUInt32BE(20 * n + 8),
    bytes.readUInt32BE(20 * n + 12),
  ]);
}

describe('NBD options before TLS', () => {
  test('all but STARTTLS and ABORT are told that TLS is required', () => {
    for (const number of [3, 6, 7, 8, 9, 10, 77]) {
      const step = new PlainOptions().take(Buffer.concat([flags(), option(number, Buffer.alloc(40))]));
      assert.deepEqual([replies(step), step.end, step.fault], [[[number, TLS_REQD]], undefined, undefined]);
    }
    const aborted = new PlainOptions().take(Buffer.concat([flags(), option(2)]));
    assert.deepEqual([replies(aborted), aborted.end], [[[2, 1]], 'abort']);
    const plain = new PlainOptions();
    const begun = plain.take(Buffer.concat([flags(1), option(STARTTLS)]));
    assert.deepEqual([replies(begun), begun.end, plain.clientFlags], [[[STARTTLS, 1]], 'tls', 1]);
  });

  test('STARTTLS with data is refused, and may come again without', () => {
    const step = new PlainOptions().take(
      Buffer.concat([flags(), option(STARTTLS, Buffer.alloc(4)), option(STARTTLS)]),
    );
    assert.deepEqual(replies(step), [
      [STARTTLS, 0x8000_0003],
      [STARTTLS, 1],
    ]);
    assert.equal(step.end, 'tls');
  });

  test('what a client may not do ends it, and is answered by nothing', () => {
    const cases: [Buffer, RegExp][] = [
      [flags(7), /unknown client flags 0x7/],
      [flags(2), /can not negotiate TLS/],
      [Buffer.concat([flags(), option(1, Buffer.from('disk'))]), /asked for an export without TLS/],
      [Buffer.concat([flags(), Buffer.alloc(16)]), /magic/],
      [Buffer.concat([flags(), option(3, Buffer.alloc(0), 0xffff_ffff)]), /4294967295 bytes/],
      [Buffer.concat([flags(), option(STARTTLS), option(3)]), /unencrypted bytes after/],
      [Buffer.concat([flags(), option(STARTTLS), Buffer.of(22)]), /unencrypted bytes after/],
    ];
    for (const [bytes, fault] of cases) {
      const step = new PlainOptions().take(bytes);
      assert.match(String(step.fault), fault);
      assert.equal(step.end, undefined);
      assert.equal(step.replies.length, 0);
    }
    const many = new PlainOptions().take(
      Buffer.concat([flags(), ...Array.from({ length: 33 }, () => option(3))]),
    );
    assert.match(String(many.fault), /more than 32 options/);
  });

  test('bytes mean the same however they are cut, up to the injection of one behind STARTTLS', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom(3, 6, 7, 8, STARTTLS), fc.nat(30)), { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
        (options, cuts) => {
          const wanted = options.filter(([number, length]) => number !== STARTTLS || length > 0);
          const stream = Buffer.concat([
            flags(),
            ...wanted.map(([number, length]) => option(number, Buffer.alloc(length, 0x49))),
            option(STARTTLS),
          ]);
          const whole = new PlainOptions().take(stream);
          const parts = new PlainOptions();
          const steps: PlainStep[] = [];
          for (let at = 0, n = 0; at < stream.length; n++) {
            const end = at + cuts[n % cuts.length];
            steps.push(parts.take(stream.subarray(at, end)));
            at = end;
          }
          assert.deepEqual(Buffer.concat(steps.map((step) => step.replies)), Buffer.from(whole.replies));
          assert.equal(steps.at(-1)?.end, 'tls');
          assert.equal(whole.end, 'tls');
        },
      ),
      propertyRuns(200),
    );
  });
});
