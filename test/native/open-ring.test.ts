import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chooseRing, openRing, ringVariable } from '../../src/native/open-ring.js';
import { ioUringSupport } from '../../src/native/probe.js';
import { openFdCount } from '../support/resources.js';

test('the machine is asked, unless the environment decides', () => {
  const before = openFdCount();
  for (const environment of [{}, { [ringVariable]: '' }]) {
    const { kind, reason } = chooseRing(environment);
    assert.equal(kind, ioUringSupport().usable ? 'io_uring' : 'system-calls');
    assert.equal(reason === '', kind === 'io_uring');
  }
  assert.equal(openFdCount(), before);
  assert.deepEqual(chooseRing({ [ringVariable]: 'io_uring' }), { kind: 'io_uring', reason: '' });
  assert.deepEqual(chooseRing({ [ringVariable]: 'system-calls' }), {
    kind: 'system-calls',
    reason: 'VDUSE_RING asks for it',
  });
  assert.throws(() => chooseRing({ [ringVariable]: 'epoll' }), {
    code: 'INVALID_ARGUMENT',
    message: /'epoll'/,
  });
});

test('a ring of system calls needs one descriptor', () => {
  const before = openFdCount();
  const ring = openRing('system-calls', 8);
  assert.equal(openFdCount(), before + 1);
  ring.close();
  assert.equal(openFdCount(), before);
});
