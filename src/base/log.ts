import { type Logger, type LoggerOptions, pino } from 'pino';
import pretty from 'pino-pretty';

export type { Logger } from 'pino';

export interface LogSettings {
  /** One of pino's levels: trace, debug, info, warn, error, fatal, silent. */
  readonly level?: string;
  /** `text` for people, `json` for programs. */
  readonly format?: 'text' | 'json';
}

/** A logger that writes to standard error, synchronously: the last line before an exit is never lost. */
export function createLogger(settings: LogSettings = {}): Logger {
  const options: LoggerOptions = { level: settings.level ?? 'info', base: null };
  if (settings.format === 'json') {
    return pino(
      { ...options, timestamp: pino.stdTimeFunctions.isoTime },
      pino.destination({ dest: 2, sync: true }),
    );
  }
  return pino(
    options,
    pretty({
      destination: 2,
      sync: true,
      translateTime: 'SYS:HH:MM:ss',
      colorize: process.stderr.isTTY === true,
    }),
  );
}

/** What the library uses when its caller gives no logger: a library is silent unless asked. */
export const silentLogger: Logger = pino({ level: 'silent' });
