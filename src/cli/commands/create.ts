/** vduse create: an empty raw image. */
import { type Command, Option } from 'commander';
import { type CommandContext, checked, createCommand } from '../support/command.js';
import { createImage } from '../support/create-image.js';
import { UsageError } from '../support/errors.js';
import { formatSize, parseSize, roundUpToSectors, sectorBytes } from '../support/size.js';

interface CreateFlags {
  readonly force?: true;
  readonly preallocate: 'off' | 'full';
}

const examples = `
SIZE is in bytes, or has a unit of 1024: K, M, G, T (also Ki, KiB and so on), such as 1.5G. It is rounded up to
a multiple of ${sectorBytes}. Without --preallocate the image is sparse: it takes space as it is written.

Examples:
  vduse create disk.img 10G
  vduse create disk.img 512M --preallocate full`;

export function createImageCommand(context: CommandContext): Command {
  return createCommand('create', 'make an empty raw image')
    .argument('<image>', 'path of the new image')
    .argument('<size>', 'such as 10G')
    .option('-f, --force', 'replace an image that exists: its contents are lost')
    .addOption(
      new Option('--preallocate <mode>', 'full: write zeroes, so that all of its space is taken now')
        .choices(['off', 'full'])
        .default('off'),
    )
    .addHelpText('after', examples)
    .action(async (path: string, sizeText: string, flags: CreateFlags) => {
      const asked = checked('create', () => parseSize(sizeText));
      if (asked === 0) {
        throw new UsageError(`create: size '${sizeText}': a disk has at least ${sectorBytes} bytes`);
      }
      const size = roundUpToSectors(asked);
      const { force = false, preallocate } = flags;
      await createImage({ path, size, force, preallocate: preallocate === 'full' }, context);
      const rounded = size === asked ? '' : `, ${asked} bytes rounded up to ${size}`;
      context.print(
        `${path}: ${formatSize(size)}, ${preallocate === 'full' ? 'preallocated' : 'sparse'}${rounded}\n`,
      );
    });
}
