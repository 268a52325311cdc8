import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { assert as ensure, unreachable } from '../../src/base/assert.js';
import { errorMessage, SystemCallError, VduseError } from '../../src/base/errors.js';

describe('errors', () => {
  it('carry a stable code, a hint and the error below', () => {
    const below = new Error('below');
    const error = new VduseError('IMAGE_LOCKED', 'open a.img: it is in use', {
      hint: 'stop it',
      cause: below,
    });
    assert.ok(error instanceof Error);
    assert.equal(error.name, 'VduseError');
    assert.equal(error.code, 'IMAGE_LOCKED');
    assert.equal(error.message, 'open a.img: it is in use');
    assert.equal(error.hint, 'stop it');
    assert.equal(error.cause, below);
  });

  it('have no cause and no hint where none is given', () => {
    const error = new VduseError('TIMEOUT', 'too late');
    assert.equal(error.hint, undefined);
    assert.equal('cause' in error, false);
  });

  it('name the system call, what it was about, and the errno', () => {
    const error = new SystemCallError('open', 2, { name: 'ENOENT', text: 'no such file' }, '/a');
    assert.equal(error.message, 'open /a: no such file (ENOENT)');
    assert.deepEqual(
      [error.code, error.errno, error.errnoName, error.syscall, error.name],
      ['SYSTEM_CALL', 2, 'ENOENT', 'open', 'SystemCallError'],
    );
    assert.ok(error instanceof VduseError);
    const bare = new SystemCallError('eventfd', 24, { name: 'EMFILE', text: 'too many open files' });
    assert.equal(bare.message, 'eventfd: too many open files (EMFILE)');
  });

  it('have a text whatever was thrown', () => {
    assert.equal(errorMessage(new VduseError('BUSY', 'text')), 'text');
    assert.equal(errorMessage('thrown'), 'thrown');
    assert.equal(errorMessage(undefined), 'undefined');
  });
});

describe('assertions', () => {
  it('throw for mistakes of our own, with what was expected', () => {
    ensure(true, 'not thrown');
    assert.throws(() => ensure(false, 'one is one'), /assertion failed: one is one/);
    assert.throws(() => unreachable('x' as never), /unreachable: x/);
  });
});
