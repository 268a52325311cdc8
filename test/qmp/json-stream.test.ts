import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { limits } from '../../src/base/limits.js';
import { JsonLexer } from '../../src/qmp/json-lexer.js';
import { type JsonMessage, JsonStream, parseJsonText } from '../../src/qmp/json-stream.js';
import { formatJson, type JsonValue } from '../../src/qmp/json-value.js';
import { propertyRuns } from '../support/property.js';
import { jsonPiece } from './json-pieces.js';

/** Everything that comes out of the chunks, as a text ends a message too. */
function messagesOf(chunks: readonly Uint8Array[]): JsonMessage[] {
  const stream = new JsonStream();
  const messages: JsonMessage[] = [];
  for (const chunk of chunks) {
    stream.push(chunk);
    for (let message = stream.next(); message !== undefined; message = stream.next()) {
      messages.push(message);
    }
  }
  return messages;
}

const messagesOfText = (text: string) => messagesOf([Buffer.from(text)]);

/** Cuts the bytes at the given places, in whatever order they come. */
function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const sorted = [0, ...places.map((place) => place % (bytes.length + 1)), bytes.length].sort(
    (a, b) => a - b,
  );
  return sorted.slice(1).map((end, index) => bytes.slice(sorted[index], end));
}

/** Lone surrogates are no text that JSON could carry. */
const isWellFormed = (text: string) => !/\p{Surrogate}/u.test(text);

const anyJson: fc.Arbitrary<JsonValue> = fc.letrec<{ value: JsonValue }>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    fc.constantFrom(null, true, false),
    fc.integer(),
    fc.maxSafeInteger(),
    fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }),
    fc.double({ noNaN: true, noDefaultInfinity: true }).filter((value) => !Number.isInteger(value)),
    fc.string({ unit: 'binary' }).filter(isWellFormed),
    fc.array(tie('value'), { maxLength: 4 }),
    fc.dictionary(
      fc
        .string({ unit: 'binary', maxLength: 6 })
        .filter((text) => isWellFormed(text) && text !== '__proto__'),
      tie('value'),
      { maxKeys: 4, noNullPrototype: true },
    ),
  ),
})).value;

describe('JSON stream', () => {
  it('gives back any values, however their bytes are cut', () => {
    fc.assert(
      fc.property(
        fc.array(anyJson, { maxLength: 4 }),
        fc.array(fc.nat(10_000)),
        fc.boolean(),
        (values, places, pretty) => {
          const text = values.map((value) => `${formatJson(value, { pretty })}\n`).join('');
          assert.deepEqual(
            messagesOf(cut(Buffer.from(text), places)),
            values.map((value) => ({ value })),
          );
        },
      ),
      propertyRuns(500),
    );
  });

  it('says the same of any bytes, however they are cut', () => {
    const bytes = fc
      .array(fc.oneof(jsonPiece, fc.uint8Array({ maxLength: 3 })), { maxLength: 30 })
      .map((pieces) => Buffer.concat(pieces));
    fc.assert(
      fc.property(bytes, fc.array(fc.nat(1000)), (input, places) => {
        const whole = messagesOf([input]);
        assert.deepEqual(messagesOf(cut(input, places)), whole);
        assert.deepEqual(messagesOf([...input].map((byte) => Uint8Array.of(byte))), whole);
      }),
      propertyRuns(1000),
    );
  });

  it('goes on after rubbish, as QEMU does', () => {
    const cases: [string, JsonMessage[]][] = [
      ['garbage {"a":1}', [{ error: "JSON parse error, invalid keyword 'garbage'" }, { value: { a: 1 } }]],
      ['}{"a":1}', [{ error: 'JSON parse error, expecting value' }, { value: { a: 1 } }]],
      ['// no\n[1]', [{ error: "JSON parse error, stray '/'" }, { value: [1] }]],
      ['"a\nb"\n1 ', [{ error: "JSON parse error, stray '\"a\n'" }, { value: 1 }]],
      ['TRUE\n[2]', [{ error: "JSON parse error, stray 'T'" }, { value: [2] }]],
      [
        '{"a":01}',
        [{ error: "JSON parse error, stray '01'" }, { error: 'JSON parse error, expecting value' }],
      ],
      ['[1}', [{ error: 'JSON parse error, expected separator in list' }]],
      ['{1:2}', [{ error: 'JSON parse error, key is not a string in object' }]],
      ['{"a" 2}', [{ error: 'JSON parse error, missing : in object pair' }]],
      ['{"a":1 "b":2}', [{ error: 'JSON parse error, expected separator in dict' }]],
      ['{"a":1,}', [{ error: 'JSON parse error, expecting value' }]],
      ['{"a":1,"a":2}', [{ error: 'JSON parse error, duplicate key' }]],
      ['"\\q"', [{ error: 'JSON parse error, invalid escape sequence in string' }]],
      ['"\\ud800"', [{ error: 'JSON parse error, \\ud800 is not a valid Unicode character' }]],
      ['"\\u12"', [{ error: 'JSON parse error, \\u12 is not a valid Unicode character' }]],
      ['12.\n', [{ error: "JSON parse error, stray '12.\n'" }]],
      ['-}', [{ error: "JSON parse error, stray '-}'" }]],
    ];
    for (const [text, expected] of cases) {
      assert.deepEqual(messagesOfText(text), expected, text);
    }
  });

  it('resynchronizes at a byte that UTF-8 never has', () => {
    const bytes = Buffer.concat([Buffer.from('{"half": "a '), Uint8Array.of(0xff), Buffer.from('{"a":1}')]);
    const messages = messagesOf([bytes]);
    assert.equal(messages.length, 2);
    assert.match(messages[0].error ?? '', /stray '"a \ufffd'/);
    assert.deepEqual(messages[1], { value: { a: 1 } });
  });

  it('refuses bytes that are not UTF-8 in a string', () => {
    const messages = messagesOf([Buffer.from([0x22, 0xc3, 0x22])]);
    assert.deepEqual(messages, [{ error: 'JSON parse error, invalid UTF-8 sequence in string' }]);
  });

  it('takes strings in single quotes and escapes', () => {
    assert.deepEqual(messagesOfText(`{'a"b': '\\'\\/\\b\\f\\n\\r\\t\\u0000\\ud83d\\ude00'}`), [
      { value: { 'a"b': "'/\b\f\n\r\t\0😀" } },
    ]);
  });

  it('keeps integers of 64 bits and takes larger ones as floating point', () => {
    assert.deepEqual(
      messagesOfText(
        '[9007199254740993,-9223372036854775808,18446744073709551615,18446744073709551616,-0,1e2]',
      ),
      [
        {
          value: [9007199254740993n, -9223372036854775808n, 18446744073709551615n, 2 ** 64, 0, 100],
        },
      ],
    );
  });

  it('takes __proto__ for a name like any other', () => {
    const [message] = messagesOfText('{"__proto__":{"polluted":1}}');
    assert.deepEqual(Object.keys(message.value as object), ['__proto__']);
    assert.equal((message.value as { polluted?: number }).polluted, undefined);
    assert.equal(formatJson(message.value as JsonValue), '{"__proto__": {"polluted": 1}}');
  });

  it('tells one error for a message nested too deeply, and goes on behind it', () => {
    const depth = limits.jsonDepthMax;
    const nested = (levels: number) => '['.repeat(levels) + ']'.repeat(levels);
    assert.equal(messagesOfText(nested(depth))[0].error, undefined);
    assert.deepEqual(messagesOfText(`${nested(depth + 1)}${nested(5000)}[1]`), [
      { error: 'JSON nesting depth limit exceeded' },
      { error: 'JSON nesting depth limit exceeded' },
      { value: [1] },
    ]);
  });

  it('tells one error for a message that is too large, and holds none of it', () => {
    const stream = new JsonStream();
    const feed = (bytes: Buffer) => {
      stream.push(bytes);
      return stream.next();
    };
    const piece = Buffer.alloc(1 << 20, 'a');
    assert.equal(feed(Buffer.from('{"a":"')), undefined);
    for (let sent = 0; sent < 2 * limits.qmpMessageBytesMax; sent += piece.length) {
      assert.equal(feed(piece), undefined);
    }
    assert.deepEqual(feed(Buffer.from('"')), { error: 'JSON token size limit exceeded' });
    assert.equal(feed(Buffer.from('}')), undefined);
    assert.deepEqual(feed(Buffer.from('[1]')), { value: [1] });
  });

  it('bounds the sum of many small tokens, and their number', () => {
    const halves = Buffer.from(`"${'b'.repeat(limits.qmpMessageBytesMax / 2)}",`);
    assert.deepEqual(messagesOf([Buffer.from('['), halves, halves, halves, Buffer.from('1][2]')]), [
      { error: 'JSON token size limit exceeded' },
      { value: [2] },
    ]);
    assert.deepEqual(messagesOfText(`[${'1,'.repeat(1 << 18)}1][2]`), [
      { error: 'JSON token count limit exceeded' },
      { value: [2] },
    ]);
  });

  it('shortens the stray text that an error repeats', () => {
    const [message] = messagesOfText(`"${'x'.repeat(100_000)}\n`);
    assert.ok((message.error ?? '').length < 200);
  });
});

describe('JSON lexer', () => {
  it('holds no more of a token than its limit', () => {
    const lexer = new JsonLexer({ tokenBytesMax: 6 });
    const tokens: [string, string][] = [];
    for (const chunk of ['"abcd" "ab', 'cdef" 123', '4567,tr', 'uefalse"', 'abcdefg\n', '\n1 ']) {
      lexer.push(Buffer.from(chunk));
      for (let token = lexer.next(); token !== undefined; token = lexer.next()) {
        tokens.push([token.type, Buffer.from(token.bytes).toString()]);
      }
    }
    assert.deepEqual(tokens, [
      ['string', '"abcd"'],
      ['oversized', ''],
      ['oversized', ''],
      ['structural', ','],
      ['oversized', ''],
      ['stray', ''],
      ['integer', '1'],
    ]);
  });
});

describe('a text that is one JSON value', () => {
  it('is read to its end', () => {
    assert.deepEqual(parseJsonText(' {"a": [1, true, null, "x", 1.5]} '), {
      value: { a: [1, true, null, 'x', 1.5] },
    });
    assert.deepEqual(parseJsonText('12'), { value: 12 });
    assert.deepEqual(parseJsonText('tru'), { error: "JSON parse error, invalid keyword 'tru'" });
    assert.deepEqual(parseJsonText('{"a":1'), { error: 'JSON parse error, premature EOI' });
    assert.deepEqual(parseJsonText('"a'), { error: "JSON parse error, stray '\"a'" });
    assert.deepEqual(parseJsonText('{}x'), { error: 'Expecting at most one JSON value' });
    assert.deepEqual(parseJsonText('{} {}'), { error: 'Expecting at most one JSON value' });
    assert.deepEqual(parseJsonText('  '), { error: 'Expecting a JSON value' });
  });
});
