import type { Machine } from './machine.js';

/** Ctrl-], three times within a second, as other tools for machines and containers have it. */
const ESCAPE = 0x1d;
const ESCAPE_COUNT = 3;
const ESCAPE_WITHIN_MS = 1_000;

export function terminalSize(): { rows: number; columns: number } {
  return { rows: process.stdout.rows ?? 24, columns: process.stdout.columns ?? 80 };
}

/**
 * Joins the user's terminal to the guest's. Gives the function that takes them apart and leaves the terminal
 * as it was. `onEscape` is called when the user wants out of a machine that no longer answers.
 */
export function attachTerminal(machine: Machine, onEscape: () => void): () => void {
  const { stdin, stdout } = process;
  let escapes: number[] = [];

  const onInput = (chunk: Buffer) => {
    machine.terminal.write(chunk);
    const now = Date.now();
    for (const byte of chunk) escapes = byte === ESCAPE ? [...escapes, now] : [];
    escapes = escapes.filter((at) => now - at < ESCAPE_WITHIN_MS);
    if (escapes.length >= ESCAPE_COUNT) onEscape();
  };
  const onResize = () => {
    const { rows, columns } = terminalSize();
    machine.send(`size ${rows} ${columns}`);
  };
  const onOutput = (chunk: Buffer) => {
    stdout.write(chunk);
  };

  stdin.setRawMode(true);
  stdin.resume();
  stdin.on('data', onInput);
  stdout.on('resize', onResize);
  machine.terminal.on('data', onOutput);

  return () => {
    stdin.off('data', onInput);
    stdout.off('resize', onResize);
    stdin.setRawMode(false);
    stdin.pause();
    // A program that died in full screen may have left the cursor hidden or the colours changed.
    stdout.write('\x1b[0m\x1b[?25h');
  };
}
