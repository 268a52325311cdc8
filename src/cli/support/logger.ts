/** A logger whose lines go through a terminal, so that they do not tear its live line. */
import { type LoggerOptions, pino } from 'pino';
import { prettyFactory } from 'pino-pretty';
import type { Logger } from '../../base/log.js';
import type { LogOptions } from './log-options.js';
import type { Terminal } from './terminal.js';

export function terminalLogger(terminal: Terminal, options: LogOptions): Logger {
  const settings: LoggerOptions = { level: options.logLevel, base: null };
  if (options.logFormat === 'json') {
    return pino(
      { ...settings, timestamp: pino.stdTimeFunctions.isoTime },
      { write: (line: string) => terminal.say(line.trimEnd()) },
    );
  }
  const format = prettyFactory({
    translateTime: 'SYS:HH:MM:ss',
    colorize: terminal.style('bold', 'x') !== 'x',
    // The sentence has it all; the fields are for programs.
    hideObject: options.logLevel !== 'trace' && options.logLevel !== 'debug',
  });
  return pino(settings, { write: (line: string) => terminal.say(format(line).trimEnd()) });
}
