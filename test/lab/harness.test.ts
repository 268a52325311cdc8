import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { EXIT_MACHINE_FAILED, EXIT_TIMED_OUT, LabError } from '../../lab/errors.js';
import { KERNEL_CHANNELS } from '../../lab/kernel.js';
import { runInLab } from '../../lab/run.js';

// The lab tested by itself: what later tests take for granted when they run something in it.

for (const kernel of KERNEL_CHANNELS) {
  test(`Debian ${kernel}: a VDUSE kernel, the host's files, the command's status and environment`, async () => {
    const script = [
      'modprobe -a vduse virtio_vdpa virtio_blk || exit 1',
      'test -c /dev/vduse/control || exit 2',
      'test -f package.json || exit 3',
      'echo "$GREETING" >&2',
      'exit 42',
    ].join('\n');
    const env = { GREETING: 'it\'s a "test" with $signs' };
    const { exitStatus, output } = await runInLab({ command: script, kernel, env });
    assert.equal(output, `${env.GREETING}\n`);
    assert.equal(exitStatus, 42);
  });
}

test('output arrives whole and unchanged, also when its reader is slow', async () => {
  const hash = createHash('sha256');
  const { exitStatus } = await runInLab({
    command: ['cat', process.execPath],
    keepOutput: false,
    onOutput: (chunk) => {
      hash.update(chunk);
      return Math.random() < 0.01 ? new Promise((resolve) => setTimeout(resolve, 20)) : undefined;
    },
  });
  assert.equal(exitStatus, 0);
  assert.equal(hash.digest('hex'), createHash('sha256').update(readFileSync(process.execPath)).digest('hex'));
});

test('a command that is not there, what it leaves running, and results', async () => {
  assert.equal((await runInLab({ command: ['no-such-command'] })).exitStatus, 127);

  const results = mkdtempSync(join(tmpdir(), 'vduse-lab-'));
  try {
    const command =
      'sleep 1000 & echo kept >"$VDUSE_LAB_RESULTS/kept"; echo lost >/etc/vduse-lost; echo done';
    const { exitStatus, output } = await runInLab({ command, results });
    assert.deepEqual({ exitStatus, output }, { exitStatus: 0, output: 'done\n' });
    assert.equal(readFileSync(join(results, 'kept'), 'utf8'), 'kept\n');
    assert.equal(statSync('/etc/vduse-lost', { throwIfNoEntry: false }), undefined);
  } finally {
    rmSync(results, { recursive: true });
  }
});

test('a command that hangs is reported with what it was doing', async () => {
  const hanging = runInLab({ command: 'echo started; sleep 1234', timeoutMs: 2_000 });
  await assert.rejects(hanging, (error) => {
    assert(error instanceof LabError);
    assert.equal(error.exitStatus, EXIT_TIMED_OUT);
    assert.equal(error.output, 'started\n');
    assert.match(error.consoleTail, /sleep 1234/);
    return true;
  });
});

test('a panic is reported with the console', async () => {
  await assert.rejects(runInLab({ command: 'echo c >/proc/sysrq-trigger' }), (error) => {
    assert(error instanceof LabError);
    assert.equal(error.exitStatus, EXIT_MACHINE_FAILED);
    assert.match(error.message, /panicked: not syncing: sysrq triggered crash/);
    assert.match(error.consoleTail, /Call Trace/);
    return true;
  });
});
