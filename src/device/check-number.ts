/** Checks of the numbers that a device is made with. Both throw INVALID_ARGUMENT. */
import { VduseError } from '../base/errors.js';

export function checkInteger(what: string, value: number, range: { min: number; max: number }): void {
  if (!Number.isInteger(value) || value < range.min || value > range.max) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `${what} ${value} is out of range: it must be from ${range.min} to ${range.max}`,
    );
  }
}

export function checkPowerOfTwo(what: string, value: number, range: { min: number; max: number }): void {
  checkInteger(what, value, range);
  if ((value & (value - 1)) !== 0) {
    const lower = 2 ** Math.floor(Math.log2(value));
    throw new VduseError('INVALID_ARGUMENT', `${what} ${value} is not a power of two`, {
      hint: `The nearest ones are ${lower} and ${lower * 2}.`,
    });
  }
}
