/**
 * `npm run quickstart`: the main job, for a newcomer to see. Where this machine has VDUSE it happens here,
 * otherwise in the lab's machine, with the same program (quickstart-tour.ts).
 */
import { join } from 'node:path';
import { moduleState } from '../src/native/modules.js';
import { vduseControl } from '../src/native/probe.js';
import { checkoutRoot } from './checkout.js';
import { LabError } from './errors.js';
import { say } from './progress.js';
import { tour } from './quickstart-tour.js';
import { runInLab } from './run.js';

const help = `Usage: npm run quickstart

Makes a disk image, exports it as /dev/vdX through VDUSE, makes a file system on it, writes, reads back,
and shows figures. Where this machine has no VDUSE, or you are not root, it happens in a virtual machine
with a Debian kernel, which is downloaded once and kept outside this folder.
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

async function tourInLab(why: string): Promise<number> {
  say(`this machine can't do it itself (${why}), so it happens in a virtual machine`);
  const program = join(checkoutRoot(), 'build/lab/quickstart-main.js');
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
  if (process.argv.includes('--help') || process.argv.includes('-h')) {
    process.stdout.write(help);
    return 0;
  }
  const why = obstacle();
  if (why === undefined) {
    await tour({ emulated: false });
    return 0;
  }
  return tourInLab(why);
}

try {
  process.exitCode = await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(`quickstart: ${message}\n`);
  process.exitCode = error instanceof LabError ? error.exitStatus : 1;
}
