/** A process ends when it is asked to, and when it has nothing left to do, although its threads sleep in the kernel. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('./exit-main.js', import.meta.url));

for (const [how, expected] of [
  ['exit', 3],
  ['throw', 1],
  ['close', 0],
  ['idle', 0],
] as const) {
  test(`by ${how}`, { timeout: 60_000 }, async () => {
    let took = Number.POSITIVE_INFINITY;
    // Far below the second for which a thread sleeps at most; a busy machine gets another try.
    for (let attempt = 0; attempt < 4 && took >= 700; attempt++) {
      took = await run(how, expected);
    }
    assert.ok(took < 700, `the process ended ${took} ms after its work`);
  });
}

/** Returns how long the process took to end after its work, in milliseconds. */
async function run(how: string, expected: number): Promise<number> {
  const child = spawn(process.execPath, [program, how], { stdio: ['ignore', 'pipe', 'ignore'] });
  let output = '';
  let servedAt = 0;
  child.stdout.on('data', (chunk: Buffer) => {
    output += String(chunk);
    servedAt ||= performance.now();
  });
  const [code, signal] = await once(child, 'exit');
  const took = performance.now() - servedAt;
  assert.deepEqual([code, signal], [expected, null], output);
  assert.match(output, /^served\n/);
  return took;
}
