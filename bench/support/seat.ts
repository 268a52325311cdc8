/** A server at work for a benchmark, which gets a new process when a client of the old one has hung or failed. */
import { setTimeout as sleep } from 'node:timers/promises';
import { say } from '../../lab/progress.js';
import type { BlockServer } from './block-servers.js';
import { ProgramError, type Running } from './processes.js';

const ATTEMPTS = 5;
const PAUSE_MS = 100;

/** What a cell could not be measured for. The benchmark goes on without it. */
export class CellFailure extends Error {}

/**
 * Does some work, and does it again where a client failed: QEMU 7.2 closes a connection's descriptor twice, and
 * the second time it may be another client's already, which is then turned away or waits for ever (docs/performance.md).
 * Throws CellFailure where it does not end well.
 */
export async function withAttempts<T>(
  name: string,
  work: (attempt: number) => Promise<T>,
  signal: AbortSignal,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof ProgramError)) throw error;
      const { reason } = error;
      if (attempt === ATTEMPTS) {
        throw new CellFailure(`${name}'s client, ${ATTEMPTS} times: ${reason}`, { cause: error });
      }
      say(`once more on ${name}: ${reason}`, 'bench');
      await sleep(PAUSE_MS, undefined, { signal });
    }
  }
}

export class Seat {
  readonly server: BlockServer;
  readonly #start: () => Promise<Running>;
  #running: Running;

  static async take(server: BlockServer, start: () => Promise<Running>): Promise<Seat> {
    return new Seat(server, start, await start());
  }

  private constructor(server: BlockServer, start: () => Promise<Running>, running: Running) {
    this.server = server;
    this.#start = start;
    this.#running = running;
  }

  get pid(): number {
    return this.#running.pid;
  }

  /** Throws CellFailure. The server is a fresh one then, for the next cell. */
  async work<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const attempt = async (number: number): Promise<T> => {
      if (number > 1) await this.#restart();
      return await work();
    };
    try {
      return await withAttempts(this.server.name, attempt, signal);
    } catch (error) {
      if (error instanceof CellFailure) await this.#restart();
      throw error;
    }
  }

  async stop(): Promise<void> {
    await this.#running.stop();
  }

  async #restart(): Promise<void> {
    await this.#running.stop();
    this.#running = await this.#start();
  }
}
