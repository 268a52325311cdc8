import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { SystemCallError } from '../../src/base/errors.js';
import { IoUring } from '../../src/native/io-uring.js';
import { mapCount, openFdCount } from '../support/resources.js';

describe('io_uring', () => {
  it('gives back its descriptor and its maps', () => {
    const fds = openFdCount();
    const maps = mapCount('[io_uring]');
    const rings = Array.from({ length: 8 }, () => new IoUring(64));
    assert.equal(openFdCount(), fds + 8);
    assert.equal(mapCount('[io_uring]') > maps, true);
    for (const each of rings) {
      each.close();
    }
    assert.equal(openFdCount(), fds);
    assert.equal(mapCount('[io_uring]'), maps);
  });

  it('says which call the kernel refused, and holds nothing then', () => {
    const fds = openFdCount();
    assert.throws(
      () => new IoUring(0),
      (error) =>
        error instanceof SystemCallError &&
        error.syscall === 'io_uring_setup' &&
        error.errnoName === 'EINVAL',
    );
    assert.equal(openFdCount(), fds);
  });
});
