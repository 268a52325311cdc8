const KEPT_LINES = 1_000;
const LONGEST_TAIL = 120;
const KERNEL_COMPLAINT =
  /Kernel panic|BUG: |Oops: |WARNING: |general protection fault|rcu.* stall|blocked for more/;

/** The kernel's console: the last lines are kept for the moment when something goes wrong. */
export class ConsoleLog {
  #lines: string[] = [];
  #partial = '';
  #total = 0;

  add(chunk: Buffer): void {
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

  /** The last lines; more of them when the kernel's first complaint lies further back. */
  tail(lines: number): string {
    const all = [...this.#lines, this.#partial].filter(Boolean);
    const complaint = all.findIndex((line) => KERNEL_COMPLAINT.test(line));
    const wanted = complaint === -1 ? lines : Math.max(lines, all.length - complaint);
    return all.slice(-Math.min(wanted, LONGEST_TAIL)).join('\n');
  }

  find(pattern: RegExp): string | undefined {
    return this.#lines.find((line) => pattern.test(line));
  }
}
