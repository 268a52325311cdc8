import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { formatJson } from '../../src/qmp/json-value.js';
import { propertyRuns } from '../support/property.js';

describe('JSON text', () => {
  it('is ASCII that says what it was made of', () => {
    fc.assert(
      fc.property(fc.jsonValue({ noUnicodeString: false }), fc.boolean(), (value, pretty) => {
        const text = formatJson(value as never, { pretty });
        assert.match(text, /^[\x20-\x7e\n]*$/);
        assert.deepEqual(JSON.parse(text), JSON.parse(JSON.stringify(value)));
      }),
      propertyRuns(500),
    );
  });

  it("has QEMU's blanks, and lines when they are asked for", () => {
    const value = { return: { a: [1, 'é'], b: {}, c: undefined }, id: 18446744073709551615n };
    assert.equal(formatJson(value), '{"return": {"a": [1, "\\u00E9"], "b": {}}, "id": 18446744073709551615}');
    assert.equal(
      formatJson(value, { pretty: true }),
      [
        '{',
        '    "return": {',
        '        "a": [',
        '            1,',
        '            "\\u00E9"',
        '        ],',
        '        "b": {}',
        '    },',
        '    "id": 18446744073709551615',
        '}',
      ].join('\n'),
    );
  });
});
