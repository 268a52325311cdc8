/** What an export tells while it lives: sentences and a live line for people, lines of JSON for programs. */
import type { DeviceStatistics } from '../../device/statistics.js';
import { describeError, sayError } from './errors.js';
import { formatSample, formatTotal, type StatisticsSample } from './rates.js';
import { formatDuration, formatSize } from './size.js';
import type { Terminal } from './terminal.js';

export interface ReadyDisk {
  readonly name: string;
  /** `/dev/vdX`, or `/dev/vhost-vdpa-N`; undefined when it is not attached. */
  readonly path: string | undefined;
  /** Bytes. */
  readonly size: number;
  readonly readOnly: boolean;
  readonly queues: number;
  readonly queueSize: number;
  readonly image: string;
}

export interface DetachedDisk {
  readonly name: string;
  readonly path: string | undefined;
  /** What asked for the end: a signal's name, or `quit` for a client of the control socket. */
  readonly reason: string;
  readonly durationMs: number;
  readonly total: DeviceStatistics;
}

export interface ExportReport {
  notice(text: string): void;
  warning(text: string): void;
  ready(disk: ReadyDisk): void;
  /** `path`: where the disk is now. */
  statistics(sample: StatisticsSample, disk: { name: string; path: string | undefined }): void;
  detached(disk: DetachedDisk): void;
  error(error: unknown): void;
  /** Waits for the work, saying so when it takes long. */
  during<T>(label: string | (() => string), work: Promise<T>): Promise<T>;
}

export type Print = (text: string) => void;

export class TextReport implements ExportReport {
  readonly #terminal: Terminal;
  readonly #print: Print;

  constructor(terminal: Terminal, print: Print) {
    this.#terminal = terminal;
    this.#print = print;
  }

  notice(text: string): void {
    this.#terminal.say(text);
  }

  warning(text: string): void {
    this.#terminal.say(`${this.#terminal.style('yellow', 'warning:')} ${text}`);
  }

  ready(disk: ReadyDisk): void {
    this.#print(`${disk.path ?? `/dev/vduse/${disk.name}`}\n`);
    const queues = `${disk.queues} queue${disk.queues === 1 ? '' : 's'} of ${disk.queueSize}`;
    const access = disk.readOnly ? 'read-only' : 'read-write';
    this.#terminal.say(
      `  ${disk.image}, ${formatSize(disk.size)}, ${access}, ${queues}. Ctrl-C takes it away.`,
    );
    if (disk.path === undefined) {
      this.#terminal.say(`  Not attached; to attach it: vdpa dev add name ${disk.name} mgmtdev vduse`);
    }
  }

  statistics(sample: StatisticsSample, disk: { name: string; path: string | undefined }): void {
    this.#terminal.live(`${disk.path ?? `${disk.name} (not attached)`}   ${formatSample(sample)}`);
  }

  detached(disk: DetachedDisk): void {
    const place = disk.path === undefined ? disk.name : `${disk.name} (${disk.path})`;
    this.#terminal.live('');
    this.#terminal.say(
      `${place} has been taken away after ${formatDuration(disk.durationMs)}: ${formatTotal(disk.total)}`,
    );
  }

  error(error: unknown): void {
    this.#terminal.live('');
    sayError(this.#terminal, error);
  }

  during<T>(label: string | (() => string), work: Promise<T>): Promise<T> {
    return this.#terminal.during(label, work);
  }
}

/** One object a line on standard output. */
export class JsonReport implements ExportReport {
  readonly #print: Print;

  constructor(print: Print) {
    this.#print = print;
  }

  notice(message: string): void {
    this.#event('notice', { message });
  }

  warning(message: string): void {
    this.#event('warning', { message });
  }

  ready(disk: ReadyDisk): void {
    const { name, size, readOnly, queues, queueSize, image } = disk;
    const path = disk.path ?? null;
    this.#event('ready', { name, path, size, readOnly, queues, queueSize, pid: process.pid, image });
  }

  statistics(sample: StatisticsSample, disk: { name: string; path: string | undefined }): void {
    const { total, ...rates } = sample;
    this.#event('statistics', { name: disk.name, path: disk.path ?? null, ...total, ...rates });
  }

  detached(disk: DetachedDisk): void {
    const { name, reason, durationMs, total } = disk;
    this.#event('detached', { name, path: disk.path ?? null, reason, seconds: durationMs / 1000, ...total });
  }

  error(error: unknown): void {
    this.#event('error', { ...describeError(error) });
  }

  during<T>(_label: string | (() => string), work: Promise<T>): Promise<T> {
    return work;
  }

  #event(event: string, fields: Readonly<Record<string, unknown>>): void {
    this.#print(`${JSON.stringify({ event, ...fields })}\n`);
  }
}
