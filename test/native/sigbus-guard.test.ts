import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Errno } from '../../src/native/errno.js';
import { pageSize } from '../../src/native/memory.js';
import { handlerPage } from '../../src/native/sigbus-handler.js';

const program = fileURLToPath(new URL('./sigbus-main.js', import.meta.url));
const whole = 16 * pageSize * 0x5a;

function run(scenario: string): { signal: NodeJS.Signals | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [program, scenario], { encoding: 'utf8', timeout: 60_000 });
}

describe('a guarded file that was cut reads as zeroes', () => {
  const cases: readonly [string, object][] = [
    ['main', { sums: [0, whole], written: 7, damaged: [true, false] }],
    ['worker', { sums: [0], damaged: [true] }],
    ['guards of two threads', { sums: [0, 0], damaged: [true] }],
    ['system calls', { sums: [-1, Errno.EFAULT], damaged: [false] }],
    ['many at once', { sums: [4095, 'NOT_SUPPORTED', 0], damaged: [true] }],
    ['given again', { sums: [0, true, whole], damaged: [false, false] }],
  ];
  for (const [scenario, expected] of cases) {
    test(scenario, () => {
      const { signal, stdout, stderr } = run(scenario);
      assert.equal(signal, null, stderr);
      assert.deepEqual(JSON.parse(stdout), expected);
    });
  }
});

describe('what nobody guards ends the process, as before', () => {
  for (const scenario of ['no guard', 'another guard', 'released']) {
    test(scenario, () => {
      assert.equal(run(scenario).signal, 'SIGBUS');
    });
  }
});

test('the page of each architecture is whole', () => {
  const previous = BigUint64Array.of(1n, 2n, 3n, 4n);
  for (const [architecture, length, last] of [
    ['x64', 48 + 124 + 7, '0f05'],
    ['arm64', 48 + 39 * 4, 'c0035fd6'],
  ] as const) {
    const page = Buffer.from(handlerPage({ table: 0x7000_1234_5000, previous }, architecture));
    assert.equal(page.length, length);
    assert.equal(page.readBigUInt64LE(8), 0x7000_1234_5000n);
    assert.equal(page.readBigUInt64LE(16), 1n);
    assert.equal(page.subarray(-last.length / 2).toString('hex'), last);
  }
});
