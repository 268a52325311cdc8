/** What the machine asks of the host that runs it: lines of stdout (test/lab/host-deeds.ts reads them). */

/** In front of a deed's name. */
export const hostMark = '##host ';

/** Asks, and goes on: whoever needs it to be done looks for what comes of it. */
export function askHost(deed: string, argument = ''): void {
  process.stdout.write(`${hostMark}${deed} ${argument}\n`);
}
