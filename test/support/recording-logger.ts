/** A logger whose lines a test can look at. */
import { pino } from 'pino';
import type { Logger } from '../../src/base/log.js';

export function recordingLogger(): { readonly logger: Logger; readonly lines: string[] } {
  const lines: string[] = [];
  const logger = pino({ level: 'trace', base: null }, { write: (line: string) => void lines.push(line) });
  return { logger, lines };
}
