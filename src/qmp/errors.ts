/** QMP's error classes (QEMU's QapiErrorClass). Nearly every error is a GenericError. */
import { VduseError, type VduseErrorOptions } from '../base/errors.js';

export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound';

/** An error whose class is not GenericError. A command may throw anything else for that. */
export class QmpError extends VduseError {
  readonly errorClass: QmpErrorClass;

  constructor(errorClass: QmpErrorClass, message: string, options: VduseErrorOptions = {}) {
    super(errorClass === 'GenericError' ? 'INVALID_ARGUMENT' : 'NOT_FOUND', message, options);
    this.name = 'QmpError';
    this.errorClass = errorClass;
  }
}
