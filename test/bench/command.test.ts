import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { readCount, readNumber, readPattern, runBenchmark, UsageError } from '../../bench/support/command.js';

describe('options of a benchmark', () => {
  test('numbers are above 0, counts whole; what is not given is the preset', () => {
    const options: Record<string, string | undefined> = { seconds: '0.3', zero: '0', word: 'many' };
    assert.equal(readNumber(options, 'seconds', 1), 0.3);
    assert.equal(readCount(options, 'seconds', 5), 1);
    assert.equal(readCount(options, 'absent', 5), 5);
    for (const name of ['zero', 'word']) {
      assert.throws(
        () => readNumber(options, name, 1),
        new UsageError(`--${name} takes a number above 0; got: ${options[name]}`),
      );
    }
  });

  test('a pattern is a regular expression', () => {
    assert.ok(readPattern({ only: 'read, depth 1$' }, 'only').test('nbd: 4k random read, depth 1'));
    assert.throws(() => readPattern({ only: '(' }, 'only'), UsageError);
  });

  test('an option that there is not: one line, and exit status 64', () => {
    const program = join(import.meta.dirname, '../../bench/remote.js');
    const { status, stderr } = spawnSync(process.execPath, [program, '--nonsense'], { encoding: 'utf8' });
    assert.equal(status, 64);
    assert.match(stderr, /^bench: .*--nonsense.*--help lists the options\n$/s);
  });
});

describe('exit statuses of a benchmark', () => {
  test('0 when it is done, 64 for a wrong command line, 1 for a failure', async () => {
    assert.equal(await runBenchmark({}, '', async () => {}), 0);
    assert.equal(await runBenchmark({}, '', () => Promise.reject(new UsageError('wrong'))), 64);
    assert.equal(await runBenchmark({}, '', () => Promise.reject(new Error('failed'))), 1);
  });

  test('130 when a signal ended it', async () => {
    const status = runBenchmark({}, '', async (signal) => {
      process.emit('SIGHUP');
      signal.throwIfAborted();
    });
    assert.equal(await status, 130);
  });
});
