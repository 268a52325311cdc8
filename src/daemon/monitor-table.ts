/** The character devices of a daemon and the monitors on them. */
import { VduseError } from '../base/errors.js';
import type { Logger } from '../base/log.js';
import { QmpMonitor, type QmpMonitorOptions } from '../qmp/monitor.js';
import type { QmpEvent } from '../qmp/protocol.js';
import { SocketChardev } from '../qmp/socket-chardev.js';
import { identifierHint, isIdentifier } from './identifier.js';
import type { ChardevRequest, MonitorRequest } from './options/chardev-options.js';

export class MonitorTable {
  readonly #options: Omit<QmpMonitorOptions, 'pretty'> & { readonly logger: Logger };
  readonly #chardevs = new Map<string, SocketChardev>();
  readonly #monitors: { readonly monitor: QmpMonitor; readonly chardev: SocketChardev }[] = [];
  #serving = false;

  constructor(options: Omit<QmpMonitorOptions, 'pretty'> & { readonly logger: Logger }) {
    this.#options = options;
  }

  get chardevs(): SocketChardev[] {
    return [...this.#chardevs.values()];
  }

  async addChardev(request: ChardevRequest): Promise<SocketChardev> {
    const { id, address, server, reconnectMs = 0 } = request;
    if (!isIdentifier(id)) {
      throw new VduseError('INVALID_ARGUMENT', "Parameter 'id' expects an identifier", {
        hint: identifierHint,
      });
    }
    if (this.#chardevs.has(id)) {
      throw new VduseError('ALREADY_EXISTS', `Chardev with id '${id}' already exists`);
    }
    const chardev = await SocketChardev.open({
      id,
      address,
      server,
      reconnectMs,
      logger: this.#options.logger,
    });
    this.#chardevs.set(id, chardev);
    return chardev;
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
