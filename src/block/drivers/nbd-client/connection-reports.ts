/** What becomes of a node's connections, from the threads that have them to the node, which writes it to the log. */
import { threadId } from 'node:worker_threads';
import type { Logger } from '../../../base/log.js';
import { listenToEngines, reportToNode } from '../../engine-reports.js';

type Report =
  /** The connection broke. */
  | { readonly kind: 'lost'; readonly connection: string; readonly reason: string }
  /** An attempt to connect failed. */
  | { readonly kind: 'failed'; readonly connection: string; readonly reason: string }
  /** There is a connection again. */
  | { readonly kind: 'back'; readonly connection: string }
  /** Requests fail from now on. */
  | { readonly kind: 'gave-up'; readonly connection: string }
  /** Nobody needs it any more. */
  | { readonly kind: 'closed'; readonly connection: string }
  | { readonly kind: 'broken'; readonly connection: string; readonly reason: string };

let nextConnection = 0;

/** One connection's side. */
export class ConnectionReporter {
  readonly #node: number;
  readonly #connection = `${threadId}.${nextConnection++}`;
  #isAway = false;

  constructor(node: number) {
    this.#node = node;
  }

  onLost(reason: string): void {
    this.#isAway = true;
    this.#report({ kind: 'lost', connection: this.#connection, reason });
  }

  onFailed(reason: string): void {
    this.#isAway = true;
    this.#report({ kind: 'failed', connection: this.#connection, reason });
  }

  onReady(): void {
    if (this.#isAway) {
      this.#isAway = false;
      this.#report({ kind: 'back', connection: this.#connection });
    }
  }

  onGaveUp(): void {
    this.#report({ kind: 'gave-up', connection: this.#connection });
  }

  onBroken(reason: string): void {
    this.#report({ kind: 'broken', connection: this.#connection, reason });
  }

  onClosed(): void {
    if (this.#isAway) {
      this.#report({ kind: 'closed', connection: this.#connection });
    }
  }

  #report(report: Report): void {
    reportToNode(this.#node, report);
  }
}

export interface ConnectionLogOptions {
  /** The number of the node in the process. */
  readonly node: number;
  readonly nodeName: string;
  readonly uri: string;
  readonly logger: Logger;
  /** How long requests wait for a server that went away. */
  readonly reconnectDelayMs: number;
  /** The connection can't be made again, whoever tries. */
  readonly isOnlyOnce: boolean;
  /** Knows more of why an attempt failed, maybe. */
  readonly explain: () => string | undefined;
}

/** Between two lines about attempts. */
const attemptLineMs = 10_000;

const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

/** The node's side: a line when the server goes away, some while it is away, and one when it is back. */
export class ConnectionLog {
  readonly #options: ConnectionLogOptions;
  readonly #stopListening: () => void;
  /** Connections that are wanted and not there. */
  readonly #away = new Set<string>();
  #awaySinceMs = 0;
  #attempts = 0;
  #nextLineMs = 0;
  #hasGivenUp = false;
  #isBroken = false;

  constructor(options: ConnectionLogOptions) {
    this.#options = options;
    this.#stopListening = listenToEngines(options.node, (report) => this.#onReport(report as Report));
  }

  close(): void {
    this.#stopListening();
  }

  #onReport(report: Report): void {
    switch (report.kind) {
      case 'lost':
        this.#onLost(report.connection, report.reason);
        break;
      case 'failed':
        this.#onFailed(report.connection, report.reason);
        break;
      case 'gave-up':
        this.#onGaveUp();
        break;
      case 'back':
        this.#onBack(report.connection);
        break;
      case 'closed':
        this.#away.delete(report.connection);
        break;
      case 'broken':
        this.#onBroken(report.reason);
        break;
    }
  }

  /** Returns whether it is the first connection to miss. */
  #miss(connection: string): boolean {
    const isFirst = this.#away.size === 0;
    this.#away.add(connection);
    if (isFirst) {
      this.#awaySinceMs = performance.now();
      this.#attempts = 0;
      this.#nextLineMs = 0;
      this.#hasGivenUp = false;
    }
    return isFirst;
  }

  #onLost(connection: string, reason: string): void {
    const { reconnectDelayMs, uri } = this.#options;
    if (this.#miss(connection)) {
      this.#log('warn', `lost the connection to '${uri}': ${reason}; ${this.#consequence(reconnectDelayMs)}`);
    }
  }

  #consequence(reconnectDelayMs: number): string {
    if (this.#options.isOnlyOnce) {
      return 'its descriptor was handed over, so nobody can connect again, and requests fail with EIO';
    }
    return reconnectDelayMs === 0
      ? 'requests under way fail with EIO, and each later one tries to connect (reconnect-delay=0)'
      : `requests wait for up to ${reconnectDelayMs / 1000} s (reconnect-delay) while it is tried again`;
  }

  #onFailed(connection: string, reason: string): void {
    this.#miss(connection);
    this.#attempts++;
    const now = performance.now();
    if (now < this.#nextLineMs) {
      return;
    }
    this.#nextLineMs = now + attemptLineMs;
    const { uri, explain } = this.#options;
    const count = this.#attempts === 1 ? '1 attempt' : `${this.#attempts} attempts`;
    this.#log(
      'warn',
      `cannot connect to '${uri}': ${explain() ?? reason}; ${count} in ${this.#awayFor}, ${this.#nextAttempt}`,
    );
  }

  get #nextAttempt(): string {
    const { isOnlyOnce, reconnectDelayMs } = this.#options;
    const leftMs = this.#awaySinceMs + reconnectDelayMs - performance.now();
    if (isOnlyOnce) {
      return 'and nobody can connect again';
    }
    return leftMs > 0 && !this.#hasGivenUp
      ? `trying on for ${seconds(leftMs)}`
      : 'the next request tries again';
  }

  #onGaveUp(): void {
    const { uri, reconnectDelayMs } = this.#options;
    // Without a delay there is nothing to give up: the first line has said all.
    if (!this.#hasGivenUp && reconnectDelayMs > 0) {
      this.#hasGivenUp = true;
      this.#log(
        'error',
        `gave up on '${uri}' after ${this.#awayFor}: requests fail with EIO, and each later one tries to connect`,
      );
    }
  }

  #onBack(connection: string): void {
    this.#away.delete(connection);
    if (this.#away.size === 0) {
      const failed = this.#attempts === 0 ? '' : `, after ${this.#attempts} failed attempts`;
      this.#log(
        'info',
        `connected to '${this.#options.uri}' again: it was away for ${this.#awayFor}${failed}`,
      );
    }
  }

  #onBroken(reason: string): void {
    if (!this.#isBroken) {
      this.#isBroken = true;
      this.#log(
        'error',
        `'${this.#options.uri}' broke the protocol: ${reason}; it is not spoken to again, and requests fail with EIO until the node is opened anew`,
      );
    }
  }

  get #awayFor(): string {
    return seconds(performance.now() - this.#awaySinceMs);
  }

  #log(level: 'info' | 'warn' | 'error', message: string): void {
    this.#options.logger[level]({ node: this.#options.nodeName }, message);
  }
}
