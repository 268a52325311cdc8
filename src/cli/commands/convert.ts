/** vduse convert: copies one image to another. */
import type { Command } from 'commander';
import { type CommandContext, checkedOption, createCommand } from '../support/command.js';
import { parseSize } from '../support/size.js';

export interface ConvertFlags {
  readonly create?: true;
  readonly force?: true;
  readonly verify?: true;
  readonly speed?: number;
  readonly object?: readonly string[];
  readonly json?: true;
}

const examples = `
SOURCE and TARGET are raw images, disks such as /dev/sdb, or filenames as QEMU takes them: a URL such as
nbd://HOST/EXPORT, rbd:POOL/IMAGE, http://..., options such as driver=rbd,pool=...,image=..., or json:{...}.
What TARGET held is overwritten, up to SOURCE's size; holes and zeroes take no space there. Nobody may write
either meanwhile: a disk in use is moved by 'vduse mirror'.

Examples:
  vduse convert disk.img copy.img --create
  vduse convert disk.img nbd://storage/disk --verify
  vduse convert http://images/debian.raw rbd:pool/vm-1
  vduse convert driver=file,filename=disk.img,cache.direct=on /dev/vg0/lv0
  vduse convert rbd:pool/vm-1:key-secret=k backup.img --create --object secret,id=k,file=key,format=base64`;

export function convertCommand(context: CommandContext): Command {
  return createCommand('convert', 'copy an image to another one, wherever the two are')
    .argument('<source>', 'image, disk or filename to read')
    .argument('<target>', 'image, disk or filename to write')
    .option('--create', 'make the target, an image file of the right size')
    .option('-f, --force', 'with --create: replace a file that exists; its contents are lost')
    .option('--verify', 'compare the two afterwards')
    .addOption(checkedOption('--speed <size>', 'bytes a second at most, such as 100M', parseSize))
    .option('--object <options>', 'a secret or credentials that a node refers to; may be repeated', collect)
    .option('--json', 'print events as lines of JSON')
    .addHelpText('after', examples)
    .action(async (source: string, target: string, flags: ConvertFlags) => {
      const { runConvert } = await import('../support/run-convert.js');
      await runConvert({ source, target, flags }, context);
    });
}

function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, text];
}
