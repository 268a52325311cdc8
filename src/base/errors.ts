/**
 * The one error class of the project. `code` is stable and may be tested by programs; `message` says what
 * was tried and what was wrong; `hint` says what to do about it. `cause` keeps the error below.
 */

export type ErrorCode =
  | 'INVALID_ARGUMENT'
  | 'NOT_FOUND'
  | 'ALREADY_EXISTS'
  | 'BUSY'
  | 'IMAGE_INVALID'
  | 'IMAGE_LOCKED'
  | 'IMAGE_READ_ONLY'
  | 'PERMISSION_DENIED'
  | 'NOT_SUPPORTED'
  | 'MODULE_MISSING'
  | 'DEVICE_BROKEN'
  | 'DEVICE_LEFT_BEHIND'
  | 'ATTACH_FAILED'
  | 'TIMEOUT'
  | 'PROTOCOL'
  | 'SYSTEM_CALL'
  | 'ABORTED';

export interface VduseErrorOptions {
  readonly hint?: string | undefined;
  readonly cause?: unknown;
}

export class VduseError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: VduseErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'VduseError';
    this.code = code;
    this.hint = options.hint;
  }
}

/** A system call that failed. `errno` is positive, `errnoName` is its symbol, such as `ENOENT`. */
export class SystemCallError extends VduseError {
  readonly errno: number;
  readonly errnoName: string;
  readonly syscall: string;

  constructor(syscall: string, errno: number, description: { name: string; text: string }, detail = '') {
    super(
      'SYSTEM_CALL',
      `${syscall}${detail === '' ? '' : ` ${detail}`}: ${description.text} (${description.name})`,
    );
    this.name = 'SystemCallError';
    this.errno = errno;
    this.errnoName = description.name;
    this.syscall = syscall;
  }
}

/** The text of anything thrown, for a log line or for the message of the error that wraps it. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
