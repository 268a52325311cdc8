/** vduse mirror: moves a disk that is in use to other storage. */
import { type Command, Option } from 'commander';
import { type CommandContext, checkedOption, createCommand } from '../support/command.js';
import { parseSize } from '../support/size.js';

export interface MirrorFlags {
  /** The socket's path, or the name of a device. */
  readonly monitor: string;
  readonly job?: string;
  readonly speed?: number;
  readonly sync: 'full' | 'top' | 'none';
  readonly copyMode: 'background' | 'write-blocking';
  readonly create?: true;
  readonly force?: true;
  /** False with --no-switch. */
  readonly switch: boolean;
  readonly json?: true;
}

const examples = `
NODE is a node's name ('vduse list --monitor SOCKET' shows those of exports). TARGET is the name of a node that the
daemon has, or what 'vduse convert' takes as TARGET, which becomes a node of its own. Both have the same size.
The target gets what the node holds and what is written meanwhile. When it has all, whatever uses the node goes on
from the target without noticing. Ctrl-C cancels, and the node stays in use.

Examples:
  vduse mirror --monitor /run/vduse/qmp.sock disk0 /fast/disk0.img --create
  vduse mirror --monitor /run/vduse/qmp.sock disk0 rbd:pool/disk0 --speed 200M
  vduse mirror --monitor /run/vduse/qmp.sock disk0 copy.img --create --no-switch    a copy of this moment`;

export function mirrorCommand(context: CommandContext): Command {
  return createCommand('mirror', 'move a disk in use to other storage')
    .usage('[options] --monitor <socket> <node> <target>')
    .argument('<node>', 'name of the node that is in use')
    .argument('<target>', "a node's name, or an image, disk or filename to write")
    .addOption(
      new Option(
        '--monitor <socket>',
        "the monitor's socket, or the name of a device (required)",
      ).makeOptionMandatory(),
    )
    .option('--create', 'make the target, an image file of the right size')
    .option('-f, --force', 'with --create: replace a file that exists; its contents are lost')
    .option('--job <id>', 'id of the job (default: mirror-NODE)')
    .addOption(checkedOption('--speed <size>', 'bytes a second at most, such as 100M', parseSize))
    .addOption(
      new Option('--sync <what>', 'none: only what is written from now on, the target holds the rest')
        .choices(['full', 'top', 'none'])
        .default('full'),
    )
    .addOption(
      new Option('--copy-mode <mode>', 'write-blocking: writes end when they are in both')
        .choices(['background', 'write-blocking'])
        .default('background'),
    )
    .option('--no-switch', 'end with a copy of the moment when it is complete, and stay on the node')
    .option('--json', 'print events as lines of JSON')
    .addHelpText('after', examples)
    .action(async (node: string, target: string, flags: MirrorFlags) => {
      const { runMirror } = await import('../support/run-mirror.js');
      await runMirror({ node, target, flags }, context);
    });
}
