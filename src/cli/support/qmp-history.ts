/** Lines that were typed into the shell for QMP, kept for the next time. */
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';

export const historyLinesMax = 1000;

function defaultPath(): string {
  const state = process.env['XDG_STATE_HOME'] ?? '';
  return join(state === '' ? join(homedir(), '.local/state') : state, 'vduse/qmp-history');
}

export class QmpHistory {
  readonly #path: string;

  constructor(path = defaultPath()) {
    this.#path = path;
  }

  /** The newest line first, as readline wants it. */
  read(): string[] {
    try {
      return readFileSync(this.#path, 'utf8').split('\n').filter(Boolean).reverse();
    } catch {
      return [];
    }
  }

  /** What may be a secret is not kept. */
  add(lines: readonly string[]): void {
    const kept = lines.filter((line) => !/secret|password|data/.test(line));
    if (kept.length === 0) {
      return;
    }
    const all = [...this.read().reverse(), ...kept].slice(-historyLinesMax);
    try {
      mkdirSync(dirname(this.#path), { recursive: true, mode: 0o700 });
      writeFileSync(this.#path, `${all.join('\n')}\n`, { mode: 0o600 });
      chmodSync(this.#path, 0o600);
    } catch {
      // A home that can't be written to takes nothing from the commands.
    }
  }
}
