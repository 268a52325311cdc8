import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { CommandContext } from '../../src/cli/support/command.js';
import { formatProgress, Progress, ProgressMeter } from '../../src/cli/support/progress.js';
import { formatSeconds } from '../../src/cli/support/size.js';
import { Terminal } from '../../src/cli/support/terminal.js';

const MiB = 1 << 20;

describe('progress', () => {
  it('is told with the rate of the last seconds, and the time that is left at it', () => {
    const meter = new ProgressMeter(0);
    const total = 100 * MiB;
    assert.deepEqual(meter.sample({ done: 0, total }, 0), {
      done: 0,
      total,
      bytesPerSecond: 0,
      secondsLeft: undefined,
    });
    assert.deepEqual(meter.sample({ done: 10 * MiB, total }, 1000), {
      done: 10 * MiB,
      total,
      bytesPerSecond: 10 * MiB,
      secondsLeft: 9,
    });
    for (let second = 2; second <= 12; second++) {
      meter.sample({ done: 10 * MiB + second * MiB, total }, second * 1000);
    }
    const { bytesPerSecond, secondsLeft } = meter.sample({ done: 23 * MiB, total }, 13_000);
    assert.equal(bytesPerSecond, MiB, 'what was faster is too long ago');
    assert.equal(secondsLeft, 77);
    assert.equal(meter.sample({ done: total, total }, 14_000).secondsLeft, 0);
  });

  it('is a bar that is full at the end, and not before', () => {
    const line = (done: number, total: number) =>
      formatProgress('copying', { done, total, bytesPerSecond: 2 * MiB, secondsLeft: (total - done) / MiB });
    assert.equal(
      line(0, 90 * MiB),
      'copying  [>                       ]   0%  0 B of 90 MiB  2 MiB/s  ETA 1 min 30 s',
    );
    assert.equal(
      line(45 * MiB, 90 * MiB),
      'copying  [============>           ]  50%  45 MiB of 90 MiB  2 MiB/s  ETA 45 s',
    );
    assert.match(line(90 * MiB - 1, 90 * MiB), /\[={23}>\] {2}99%/);
    assert.match(line(90 * MiB, 90 * MiB), /\[={24}\] 100%/);
    assert.match(line(0, 0), /\[={24}\] 100%/);
    assert.doesNotMatch(
      formatProgress('x', { done: 0, total: 1, bytesPerSecond: 0, secondsLeft: undefined }),
      /ETA/,
    );
  });

  it('is events for programs, the last of them at the end', () => {
    const lines: string[] = [];
    const context: CommandContext = {
      terminal: new Terminal(process.stderr, { TERM: 'dumb' }),
      print: (text) => lines.push(text),
      exitStatus: 0,
    };
    const progress = new Progress(context, { label: 'copying', json: true, total: 10 });
    progress.update(10);
    progress.close();
    assert.equal(lines.length, 1);
    const { bytesPerSecond, ...event } = JSON.parse(lines[0]) as Record<string, unknown>;
    assert.deepEqual(event, { event: 'progress', phase: 'copying', done: 10, total: 10, secondsLeft: 0 });
    assert.ok(Number.isInteger(bytesPerSecond));
  });

  it('took so long', () => {
    assert.deepEqual([0, 0.04, 0.0994, 0.0996, 59.94, 125].map(formatSeconds), [
      '1 ms',
      '40 ms',
      '99 ms',
      '0.1 s',
      '59.9 s',
      '2 min 5 s',
    ]);
  });
});
