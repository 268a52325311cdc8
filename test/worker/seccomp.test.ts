/** A process whose sandbox forbids io_uring serves its disks by system calls, and says so once. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Errno } from '../../src/native/errno.js';
import { ringVariable } from '../../src/native/open-ring.js';

const program = fileURLToPath(new URL('./seccomp-main.js', import.meta.url));

function run(ring: string) {
  const env = { ...process.env, [ringVariable]: ring };
  return spawnSync(process.execPath, [program], { encoding: 'utf8', env, timeout: 60_000 });
}

test('queue threads and the main thread work under a seccomp filter', () => {
  const { stdout, stderr, status } = run('');
  assert.equal(status, 0, stderr);
  assert.deepEqual(JSON.parse(stdout), { errno: Errno.EPERM, found: [8192, 8192] });
  const lines = stderr.trim().split('\n');
  assert.equal(lines.length, 1, stderr);
  const { level, msg } = JSON.parse(lines[0]) as { level: number; msg: string };
  assert.equal(level, 30);
  assert.match(msg, /^queues use system calls instead of io_uring: io_uring_setup .*\(EPERM\)$/);
});

test('who insists on io_uring gets the error', () => {
  const { stderr, status } = run('io_uring');
  assert.equal(status, 1);
  assert.match(stderr, /io_uring_setup .*\(EPERM\)/);
});
