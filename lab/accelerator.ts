import { accessSync, constants, readFileSync } from 'node:fs';
import { release } from 'node:os';

import { labCache, readJson, writeFileAtomic } from './cache.js';

export const ACCELERATORS = ['kvm', 'tcg'] as const;
export type Accelerator = (typeof ACCELERATORS)[number];

/** What booting showed, on which host. */
interface Remembered {
  host: string;
  accelerator: Accelerator;
}

function hostIdentity(): string {
  const model = /^model name\s*: (.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown';
  return `${release()} ${model}`;
}

/** /dev/kvm may be there and still not boot a stock kernel (nested, or stripped down): only trying shows. */
export function chooseAccelerator(): { accelerator: Accelerator; proven: boolean } {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return { accelerator: 'tcg', proven: true };
  }
  const remembered = readJson<Remembered>(labCache('accelerator.json'));
  if (remembered?.host !== hostIdentity()) return { accelerator: 'kvm', proven: false };
  return { accelerator: remembered.accelerator, proven: true };
}

export function rememberAccelerator(accelerator: Accelerator): void {
  const remembered: Remembered = { host: hostIdentity(), accelerator };
  writeFileAtomic(labCache('accelerator.json'), `${JSON.stringify(remembered, null, 2)}\n`);
}
