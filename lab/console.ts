const KEPT_LINES = 1_000;

/** The kernel's console: the last lines are kept for the moment when something goes wrong. */
export class ConsoleLog {
  #lines: string[] = [];
  #partial = '';
  #total = 0;
  /** When the machine last said something, to know when it's done. */
  lastActivity = Date.now();

  add(chunk: Buffer): void {
    this.lastActivity = Date.now();
    const lines = (this.#partial + chunk.toString('latin1')).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      // Escape sequences and carriage returns would disturb the terminal that shows this later.
      // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
      this.#lines.push(line.replace(/\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]/g, ''));
    }
    this.#total += lines.length;
    this.#lines = this.#lines.slice(-KEPT_LINES);
  }

  /** How many lines there have been, for `since`. */
  get position(): number {
    return this.#total;
  }

  /** The lines that came after `position`, as far as they are kept. */
  since(position: number): string[] {
    const count = this.#total - position;
    return count === 0 ? [] : this.#lines.slice(-count);
  }

  tail(lines: number): string {
    return [...this.#lines, this.#partial].filter(Boolean).slice(-lines).join('\n');
  }

  find(pattern: RegExp): string | undefined {
    return this.#lines.find((line) => pattern.test(line));
  }
}
