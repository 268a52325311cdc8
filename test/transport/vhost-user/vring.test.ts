import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drainEventFd, signalEventFd, writeFd } from '../../../src/native/fd.js';
import { bindLibc } from '../../../src/native/ffi.js';
import { Vring } from '../../../src/transport/vhost-user/vring.js';
import { openFdCount } from '../../support/resources.js';

const blockingEventFd = bindLibc<(initial: number, flags: number) => number>('eventfd', 'int', [
  'uint',
  'int',
]);
/** eventfd(2): the largest value that a counter takes. */
const brim = new Uint8Array(new BigUint64Array([0xffff_ffff_ffff_fffen]).buffer);

test('an error descriptor is signalled whatever its counter says, replaced, and closed with the rest', () => {
  const fds = openFdCount();
  const vring = new Vring(0);
  vring.signalError();
  const first = blockingEventFd(0, 0);
  assert.equal(writeFd(first, brim), 8);
  vring.setError(first);
  vring.signalError();
  vring.setError(undefined);
  vring.signalError();
  vring.setError(blockingEventFd(0, 0));
  vring.reset();
  assert.equal(openFdCount(), fds);
});

test('a call descriptor whose counter is full stops nobody', () => {
  const fds = openFdCount();
  for (const before of [false, true]) {
    const vring = new Vring(0);
    if (before) {
      vring.setCall(blockingEventFd(0, 0));
    }
    const theirs = blockingEventFd(0, 0);
    assert.equal(writeFd(theirs, brim), 8);
    vring.setCall(theirs);
    const spec = vring.callNotifier;
    assert.equal(spec.kind, 'eventfd');
    if (spec.kind === 'eventfd') {
      // Without O_NONBLOCK this line would be the last one.
      signalEventFd(spec.fd);
      drainEventFd(spec.fd);
      signalEventFd(spec.fd);
    }
    vring.reset();
  }
  assert.equal(openFdCount(), fds);
});
