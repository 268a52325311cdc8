import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockServer } from '../../bench/support/block-servers.js';
import { TimeLimitError } from '../../bench/support/processes.js';
import { CellFailure, Seat } from '../../bench/support/seat.js';

const server: BlockServer = { name: 'peer', threaded: false, protocol: 'vhost-user', command: () => [] };
const { signal } = new AbortController();

async function takeSeat(): Promise<{ seat: Seat; log: string[] }> {
  const log: string[] = [];
  let pid = 0;
  const seat = await Seat.take(server, async () => {
    const own = ++pid;
    log.push(`start ${own}`);
    return { pid: own, output: () => '', stop: async () => void log.push(`stop ${own}`) };
  });
  return { seat, log };
}

test('a client that hangs gets a fresh server, and another chance', async () => {
  const { seat, log } = await takeSeat();
  const answer = await seat.work(async () => {
    if (seat.pid === 1) throw new TimeLimitError('no end within 1 s');
    return seat.pid;
  }, signal);
  assert.equal(answer, 2);
  assert.deepEqual(log, ['start 1', 'stop 1', 'start 2']);
});

test('a cell whose clients never end fails with the reason, and leaves a fresh server to the next', async () => {
  const { seat, log } = await takeSeat();
  const hanging = seat.work(() => Promise.reject(new TimeLimitError('no end within 1 s')), signal);
  await assert.rejects(hanging, (error: Error) => {
    assert.ok(error instanceof CellFailure);
    assert.equal(error.message, "peer's client, 5 times: no end within 1 s");
    return true;
  });
  assert.equal(log.at(-1), `start ${seat.pid}`);
});

test('another error ends the benchmark, and so does an interruption', async () => {
  const { seat } = await takeSeat();
  await assert.rejects(
    seat.work(() => Promise.reject(new Error('no such file')), signal),
    /no such file/,
  );
  const interrupted = new AbortController();
  const work = seat.work(() => {
    interrupted.abort(new Error('interrupted'));
    return Promise.reject(new TimeLimitError('no end within 1 s'));
  }, interrupted.signal);
  await assert.rejects(work, /interrupted/);
  assert.equal(seat.pid, 1);
});
