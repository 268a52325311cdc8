/** A QMP monitor: the front-end of a character device, one session at a time. */
import type { Duplex } from 'node:stream';
import { type Logger, silentLogger } from '../base/log.js';
import type { QmpCommandTable } from './command-table.js';
import { QmpError } from './errors.js';
import { formatJson } from './json-value.js';
import { errorAnswer, type QmpEvent, type QmpVersion } from './protocol.js';
import { QmpSession } from './session.js';

export interface QmpMonitorOptions {
  readonly commands: QmpCommandTable;
  readonly version: QmpVersion;
  readonly pretty?: boolean;
  readonly logger?: Logger;
}

export class QmpMonitor {
  readonly #options: QmpMonitorOptions;
  #session: QmpSession | undefined;

  constructor(options: QmpMonitorOptions) {
    this.#options = options;
  }

  onConnection(stream: Duplex): QmpSession {
    const { commands, version, pretty = false, logger = silentLogger } = this.#options;
    const session = new QmpSession({ stream, commands, version, pretty, logger });
    this.#session = session;
    return session;
  }

  refuse(stream: Duplex): void {
    const error = new QmpError('GenericError', 'too many clients wait for this monitor already');
    stream.write(`${formatJson(errorAnswer(error, undefined))}\n`);
  }

  sendEvent(event: QmpEvent): void {
    this.#session?.sendEvent(event);
  }
}
