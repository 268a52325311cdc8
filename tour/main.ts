/**
 * `npm run quickstart`: the main job, for a newcomer to see. Where this machine has VDUSE it happens there;
 * everywhere else, without privileges, with the software driver in the kernel's place.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkoutRoot } from '../lab/checkout.js';
import { LabError } from '../lab/errors.js';
import { say } from '../lab/progress.js';
import { runInLab } from '../lab/run.js';
import { moduleState } from '../src/native/modules.js';
import { vduseControl } from '../src/native/probe.js';
import { tour } from './kernel.js';
import { softwareTour } from './software.js';

const help = `Usage: npm run quickstart [-- OPTIONS]

Makes a disk image, serves it through VDUSE, writes, reads back, compares, and shows figures. Where this machine's
kernel has VDUSE and you are root, it becomes /dev/vdX there; everywhere else the software driver plays the kernel,
which takes seconds and no privileges.

  --trace     print every control message and every change of the memory map
  --software  the software driver, even where the kernel has VDUSE
  --lab       a real Linux kernel, in a virtual machine that is downloaded once
  --help      this text
`;

/** Why this machine can't do it; undefined where it can. */
function obstacle(): string | undefined {
  if (process.getuid?.() !== 0) {
    return 'you are not root, which a disk of the kernel takes';
  }
  if (vduseControl().usable) {
    return undefined;
  }
  const missing = ['vduse', 'virtio_vdpa', 'virtio_blk'].filter((name) => moduleState(name) === 'missing');
  return missing.length === 0 ? undefined : `its kernel has no ${missing.join(', no ')}`;
}

async function tourInLab(): Promise<number> {
  say('the tour on a Linux kernel with VDUSE, in a virtual machine');
  const program = join(checkoutRoot(), 'build/tour/kernel-main.js');
  const { exitStatus } = await runInLab({
    command: [process.execPath, program],
    env: { VDUSE_QUICKSTART_EMULATED: '1' },
    timeoutMs: 300_000,
    keepOutput: false,
    announce: true,
    onOutput: (chunk) => {
      process.stdout.write(chunk);
    },
  });
  return exitStatus;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      trace: { type: 'boolean' },
      software: { type: 'boolean' },
      lab: { type: 'boolean' },
    },
  });
  if (values.help === true) {
    process.stdout.write(help);
    return 0;
  }
  if (values.lab === true) {
    return tourInLab();
  }
  const why = values.software === true ? 'you asked for the software driver' : obstacle();
  if (why === undefined) {
    process.stdout.write('This machine has VDUSE: the disk will be one of its kernel.\n');
    await tour({ emulated: false });
  } else {
    await softwareTour({ why, trace: values.trace === true });
  }
  return 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`quickstart: ${message}\n`);
  process.exitCode = error instanceof LabError ? error.exitStatus : 1;
}
