/** A monitor on a Unix socket of its own folder, and clients that are closed at the end of the test. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VduseError } from '../../src/base/errors.js';
import { QmpCommandTable } from '../../src/qmp/command-table.js';
import { QmpError } from '../../src/qmp/errors.js';
import { QmpMonitor } from '../../src/qmp/monitor.js';
import { jsonScalars as s, struct } from '../../src/qmp/qapi.js';
import { SocketChardev } from '../../src/qmp/socket-chardev.js';
import { QmpClient } from './client.js';

export const version = { qemu: { major: 7, minor: 2, micro: 0 }, package: 'test' };

export class MonitorFixture {
  readonly directory = mkdtempSync(join(tmpdir(), 'vduse-qmp-'));
  readonly path = join(this.directory, 'qmp.sock');
  /** The commands that were run. */
  readonly executed: string[] = [];
  /** Ends the command `hang`. */
  release: () => void = () => undefined;
  readonly #clients: QmpClient[] = [];
  #open: { chardev: SocketChardev; monitor: QmpMonitor } | undefined;

  get chardev(): SocketChardev {
    return this.#opened.chardev;
  }

  get monitor(): QmpMonitor {
    return this.#opened.monitor;
  }

  get #opened(): { chardev: SocketChardev; monitor: QmpMonitor } {
    if (this.#open === undefined) {
      throw new Error('the monitor is not open');
    }
    return this.#open;
  }

  createMonitor(options: { pretty?: boolean } = {}): QmpMonitor {
    return new QmpMonitor({ commands: this.#createCommands(), version, ...options });
  }

  /** A character device that nobody serves yet. */
  async openChardev(): Promise<SocketChardev> {
    const chardev = await SocketChardev.open({
      id: 'm',
      address: { type: 'unix', path: this.path },
      server: true,
    });
    this.#open = { chardev, monitor: this.createMonitor() };
    return chardev;
  }

  async openMonitor(options: { pretty?: boolean } = {}): Promise<void> {
    const chardev = await this.openChardev();
    const monitor = this.createMonitor(options);
    chardev.attach(monitor);
    chardev.serve();
    this.#open = { chardev, monitor };
  }

  async connect(): Promise<QmpClient> {
    const client = await QmpClient.connect(this.path);
    this.#clients.push(client);
    return client;
  }

  /** A client that has negotiated. */
  async openClient(): Promise<QmpClient> {
    const client = await QmpClient.open(this.path);
    this.#clients.push(client);
    return client;
  }

  async close(): Promise<void> {
    for (const client of this.#clients) {
      client.close();
    }
    await this.#open?.chardev.close();
    rmSync(this.directory, { recursive: true });
  }

  #createCommands(): QmpCommandTable {
    const commands = new QmpCommandTable();
    commands.addQuery('echo', struct({ text: s.str }), ({ text }) => {
      this.executed.push(text);
      return text;
    });
    commands.addQuery('repeat', struct({ count: s.int }), ({ count }) => {
      this.executed.push('repeat');
      return 'x'.repeat(count);
    });
    commands.addAction('hang', struct({}), async () => {
      this.executed.push('hang');
      await new Promise<void>((done) => {
        this.release = done;
      });
    });
    commands.addAction('fail', struct({}), () => {
      throw new VduseError('BUSY', 'it is in use');
    });
    commands.addAction('lost', struct({}), () => {
      throw new QmpError('DeviceNotFound', "Device 'x' not found");
    });
    return commands;
  }
}
