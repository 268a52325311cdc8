/** Lines about what the lab, or who else prepares things, is doing go to stderr: stdout belongs to the command. */
export function say(line: string, who = 'lab'): void {
  process.stderr.write(`${who}: ${line}\n`);
}

const QUIET_MS = 2_000;
const LINE_EVERY_MS = 10_000;
const CLEAR_LINE = '\r\x1b[K';

/** Runs `work`; when it takes longer than two seconds, shows what is being waited for and since when. */
export async function withProgress<T>(label: string, work: () => Promise<T>, who = 'lab'): Promise<T> {
  const started = Date.now();
  const onTerminal = process.stderr.isTTY === true;
  let lastLine = Number.NEGATIVE_INFINITY;

  const timer = setInterval(
    () => {
      const elapsed = Date.now() - started;
      if (elapsed < QUIET_MS) return;
      const seconds = Math.round(elapsed / 1000);
      if (onTerminal) {
        process.stderr.write(`${CLEAR_LINE}${who}: ${label} … ${seconds} s`);
      } else if (elapsed - lastLine >= LINE_EVERY_MS) {
        lastLine = elapsed;
        say(`${label} … ${seconds} s`, who);
      }
    },
    onTerminal ? 250 : 500,
  );

  try {
    return await work();
  } finally {
    clearInterval(timer);
    if (onTerminal && Date.now() - started >= QUIET_MS) process.stderr.write(CLEAR_LINE);
  }
}
