/** The character devices of a daemon and the monitors on them. */
import { VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { type Chardev, NullChardev } from '../qmp/chardev.js';
import { QmpMonitor, type QmpMonitorOptions } from '../qmp/monitor.js';
import type { QmpEvent } from '../qmp/protocol.js';
import { SocketChardev } from '../qmp/socket-chardev.js';
import type { ChardevRequest, MonitorRequest } from './options/chardev-options.js';

export class MonitorTable {
  readonly #options: Omit<QmpMonitorOptions, 'pretty'> & { readonly logger: Logger };
  readonly #chardevs = new Map<string, Chardev>();
  readonly #monitors: { readonly monitor: QmpMonitor; readonly chardev: Chardev }[] = [];
  #serving = false;

  constructor(options: Omit<QmpMonitorOptions, 'pretty'> & { readonly logger: Logger }) {
    this.#options = options;
  }

  get chardevs(): Chardev[] {
    return [...this.#chardevs.values()];
  }

  async addChardev(request: ChardevRequest): Promise<Chardev> {
    const { id } = request;
    if (this.#chardevs.has(id)) {
      throw new VduseError('ALREADY_EXISTS', `Chardev with id '${id}' already exists`);
    }
    const chardev = await this.#open(request);
    this.#chardevs.set(id, chardev);
    return chardev;
  }

  #open(request: ChardevRequest): Promise<Chardev> | Chardev {
    if (request.backend === 'null') {
      return new NullChardev(request.id);
    }
    const { id, address, server, reconnectMs = 0 } = request;
    return SocketChardev.open({ id, address, server, reconnectMs, logger: this.#options.logger });
  }

  /** Throws NOT_FOUND, and BUSY for one that a monitor has. */
  async removeChardev(id: string): Promise<void> {
    const chardev = this.#chardevs.get(id);
    if (chardev === undefined) {
      throw new VduseError('NOT_FOUND', `Chardev '${id}' not found`);
    }
    if (chardev.isAttached) {
      throw new VduseError('BUSY', `Chardev '${id}' is busy`);
    }
    this.#chardevs.delete(id);
    await chardev.close();
  }

  addMonitor(request: MonitorRequest): void {
    const chardev = this.#chardevs.get(request.chardev);
    if (chardev === undefined) {
      throw new VduseError('NOT_FOUND', `chardev "${request.chardev}" not found`, {
        hint: 'options take effect in their order: put --chardev before --monitor',
      });
    }
    const monitor = new QmpMonitor({ ...this.#options, pretty: request.pretty ?? false });
    chardev.attach(monitor);
    this.#monitors.push({ monitor, chardev });
    if (this.#serving) {
      chardev.serve();
    }
  }

  /** From now on clients are greeted; before they wait. */
  serve(): void {
    this.#serving = true;
    for (const { chardev } of this.#monitors) {
      chardev.serve();
    }
  }

  sendEvent(event: QmpEvent): void {
    for (const { monitor } of this.#monitors) {
      monitor.sendEvent(event);
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.chardevs.map((chardev) => chardev.close()));
    this.#chardevs.clear();
  }
}
