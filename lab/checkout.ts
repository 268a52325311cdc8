import { existsSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { LabError } from './errors.js';

/**
 * The directory that holds package.json, whether this file runs from build/lab/ or from lab/: assets such as
 * the guest's scripts are read from the sources, because the compiler copies nothing but code.
 */
export function checkoutRoot(): string {
  let directory = dirname(fileURLToPath(import.meta.url));
  while (directory !== dirname(directory)) {
    const manifest = join(directory, 'package.json');
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === 'vduse') {
      return realpathSync(directory);
    }
    directory = dirname(directory);
  }
  throw new LabError(
    `The lab looked for the package.json of vduse above ${fileURLToPath(import.meta.url)} and found none. ` +
      'Run it from a checkout of the project.',
  );
}
