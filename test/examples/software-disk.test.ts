/** The example that needs no kernel, run as a user would, and asked by a client that nobody here wrote. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { test } from 'node:test';

const socket = '/tmp/vduse-example.sock';
const example = new URL('../../examples/5-software-disk.js', import.meta.url).pathname;

function hasQemuImg(): boolean {
  try {
    execFileSync('qemu-img', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

test('the software disk example serves a disk over NBD and leaves nothing', { timeout: 60_000 }, async () => {
  const child = spawn(process.execPath, ['--conditions=vduse-checkout', example], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  try {
    const lines: string[] = [];
    for await (const line of createInterface({ input: child.stdout })) {
      lines.push(line);
      if (lines.length === 2) {
        break;
      }
    }
    assert.deepEqual(lines, ['hello, virtio', `nbd+unix:///?socket=${socket}`]);
    if (hasQemuImg()) {
      const info = execFileSync('qemu-img', ['info', '--output=json', `nbd+unix:///?socket=${socket}`]);
      assert.equal(JSON.parse(info.toString())['virtual-size'], 64 * 1024 * 1024);
    }
  } finally {
    child.kill('SIGTERM');
  }
  assert.deepEqual(await exited, [0, null]);
  assert.equal(existsSync(socket), false);
});
