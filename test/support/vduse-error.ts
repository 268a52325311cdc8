/** Our errors, as assert.throws and assert.rejects want them. */
import assert from 'node:assert/strict';
import { VduseError } from '../../src/base/errors.js';

export function isVduseError(code: string, text?: RegExp): (error: unknown) => true {
  return (error) => {
    assert.ok(error instanceof VduseError, String(error));
    assert.equal(error.code, code, error.message);
    if (text !== undefined) {
      assert.match(error.message, text);
    }
    return true;
  };
}
