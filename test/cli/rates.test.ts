import assert from 'node:assert/strict';
import { it } from 'node:test';
import { formatSample, formatTotal, RateMeter } from '../../src/cli/support/rates.js';
import type { DeviceStatistics } from '../../src/device/statistics.js';

const zero: DeviceStatistics = {
  reads: 0,
  writes: 0,
  flushes: 0,
  unmaps: 0,
  readBytes: 0,
  writeBytes: 0,
  errors: 0,
  inFlight: 0,
  interrupts: 0,
};

it('a sample is what happened since the one before, per second', () => {
  const meter = new RateMeter({ ...zero, reads: 10, readBytes: 1000 }, 5000);
  const first = meter.sample({ ...zero, reads: 30, readBytes: 9000, writes: 4, writeBytes: 4096 }, 7000);
  assert.equal(first.seconds, 2);
  assert.equal(first.readsPerSecond, 10);
  assert.equal(first.readBytesPerSecond, 4000);
  assert.equal(first.writesPerSecond, 2);
  assert.equal(first.writeBytesPerSecond, 2048);
  const second = meter.sample({ ...zero, reads: 31, readBytes: 9000, writes: 4, writeBytes: 4096 }, 7500);
  assert.equal(second.readsPerSecond, 2);
  assert.equal(second.writesPerSecond, 0);
});

it('two samples at the same time have finite rates', () => {
  const meter = new RateMeter(zero, 1);
  assert.ok(Number.isFinite(meter.sample({ ...zero, reads: 1 }, 1).readsPerSecond));
});

it('the live line has errors only when there are some, and does not jump', () => {
  const meter = new RateMeter(zero, 0);
  const quiet = formatSample(meter.sample(zero, 1000));
  const busy = formatSample(meter.sample({ ...zero, reads: 12_300, readBytes: 50 << 20, inFlight: 7 }, 2000));
  assert.equal(quiet, 'read    0/s       0 B/s   write    0/s       0 B/s   in flight 0');
  assert.equal(busy, 'read 12.3k/s    50 MiB/s   write    0/s       0 B/s   in flight 7');
  assert.match(formatSample(meter.sample({ ...zero, errors: 1 }, 3000)), /in flight 0 {3}1 I\/O error$/);
  assert.match(formatSample(meter.sample({ ...zero, errors: 2 }, 3000)), /2 I\/O errors$/);
});

it('the summary', () => {
  assert.equal(formatTotal(zero), '0 reads (0 B), 0 writes (0 B), 0 flushes, no errors');
  const total = {
    ...zero,
    reads: 1,
    readBytes: 512,
    writes: 2,
    writeBytes: 8192,
    flushes: 1,
    unmaps: 3,
    errors: 1,
  };
  assert.equal(formatTotal(total), '1 read (512 B), 2 writes (8 KiB), 1 flush, 3 discards, 1 I/O error');
});
