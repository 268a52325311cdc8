/** What a device's counters say about a stretch of time. */
import type { DeviceStatistics } from '../../device/statistics.js';
import { formatCount, formatSize } from './size.js';

export interface StatisticsSample {
  /** Since the device was made. */
  readonly total: DeviceStatistics;
  /** Since the sample before; the rest is per second of it. */
  readonly seconds: number;
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writeBytesPerSecond: number;
}

export class RateMeter {
  #last: DeviceStatistics;
  #lastMs: number;

  constructor(start: DeviceStatistics, nowMs: number) {
    this.#last = start;
    this.#lastMs = nowMs;
  }

  sample(total: DeviceStatistics, nowMs: number): StatisticsSample {
    // Two samples in the same millisecond have no rate; a short one is better than infinity.
    const seconds = Math.max(1, nowMs - this.#lastMs) / 1000;
    const perSecond = (key: 'reads' | 'writes' | 'readBytes' | 'writeBytes'): number =>
      (total[key] - this.#last[key]) / seconds;
    const sample = {
      total,
      seconds,
      readsPerSecond: perSecond('reads'),
      writesPerSecond: perSecond('writes'),
      readBytesPerSecond: perSecond('readBytes'),
      writeBytesPerSecond: perSecond('writeBytes'),
    };
    this.#last = total;
    this.#lastMs = nowMs;
    return sample;
  }
}

function formatErrors(errors: number): string {
  return `${errors} I/O error${errors === 1 ? '' : 's'}`;
}

/** `read 1.2k/s 4.8 MiB/s   write 0/s 0 B/s   in flight 3`, and the errors if there were any. */
export function formatSample(sample: StatisticsSample): string {
  const direction = (name: string, operations: number, bytes: number): string =>
    `${name} ${`${formatCount(operations)}/s`.padStart(6)} ${`${formatSize(Math.round(bytes))}/s`.padStart(11)}`;
  const parts = [
    direction('read', sample.readsPerSecond, sample.readBytesPerSecond),
    direction('write', sample.writesPerSecond, sample.writeBytesPerSecond),
    `in flight ${sample.total.inFlight}`,
  ];
  if (sample.total.errors > 0) {
    parts.push(formatErrors(sample.total.errors));
  }
  return parts.join('   ');
}

/** `12 reads (48 KiB), 3 writes (12 KiB), 1 flush, no errors`. */
export function formatTotal(total: DeviceStatistics): string {
  const plural = (count: number, one: string, many = `${one}s`): string =>
    `${count} ${count === 1 ? one : many}`;
  const parts = [
    `${plural(total.reads, 'read')} (${formatSize(total.readBytes)})`,
    `${plural(total.writes, 'write')} (${formatSize(total.writeBytes)})`,
    plural(total.flushes, 'flush', 'flushes'),
  ];
  if (total.unmaps > 0) {
    parts.push(plural(total.unmaps, 'discard'));
  }
  return `${parts.join(', ')}, ${total.errors === 0 ? 'no errors' : formatErrors(total.errors)}`;
}
