import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';

/**
 * Checks a VDUSE device name. The kernel takes names such as "a/b", which then can't be destroyed, and
 * "control", which is its own: so they are refused here.
 */
export function checkDeviceName(name: string): void {
  const refuse = (why: string): never => {
    throw new VduseError('INVALID_ARGUMENT', `device name '${name}' can't be used: ${why}`, {
      hint: 'Use letters, digits, dashes, dots and underscores, for instance disk0.',
    });
  };
  if (name === '') {
    refuse('it is empty');
  }
  if (Buffer.byteLength(name) > limits.deviceNameBytesMax) {
    refuse(`it is longer than ${limits.deviceNameBytesMax} bytes`);
  }
  if (name === 'control' || name === '.' || name === '..') {
    refuse('the name is reserved');
  }
  if (name.includes('/')) {
    refuse('it has a slash');
  }
  if (!/^[\w.:@+-]+$/.test(name)) {
    refuse('it has a character that device nodes should not have');
  }
}
