/** The options of commands that log. */
import { Option } from 'commander';

const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;
const logFormats = ['text', 'json'] as const;

export interface LogOptions {
  readonly logLevel: (typeof logLevels)[number];
  readonly logFormat: (typeof logFormats)[number];
}

export function logLevelOption(): Option {
  return new Option('--log-level <level>', 'least level of log messages').choices(logLevels).default('warn');
}

export function logFormatOption(): Option {
  return new Option('--log-format <format>', 'log messages for people or as JSON')
    .choices(logFormats)
    .default('text');
}
