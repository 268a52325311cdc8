/** vduse serve: a software disk over NBD, for machines without the kernel's VDUSE and users without privileges. */
import { type Command, Option } from 'commander';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { NBD_PORT, type NbdAddress } from '../../nbd/nbd-server.js';
import { checkDeviceName } from '../../transport/vduse/device-name.js';
import {
  type CommandContext,
  checked,
  checkedOption,
  createCommand,
  integerIn,
  powerOfTwoIn,
} from '../support/command.js';
import { type LogOptions, logFormatOption, logLevelOption } from '../support/log-options.js';

export interface ServeFlags extends LogOptions {
  readonly nbd: readonly NbdAddress[];
  readonly name?: string;
  readonly exportName: string;
  readonly readOnly?: true;
  readonly queues?: number;
  readonly queueSize?: number;
  readonly bounce?: true;
  readonly json?: true;
}

const examples = `
ADDRESS is a path (a Unix socket, for this user only), or tcp:PORT on this machine's loopback (tcp: alone is port
${NBD_PORT}). IMAGE is what 'vduse export' takes. It is served by the same virtio-blk device as there; the
software driver plays the kernel.

Examples:
  vduse serve disk.img --nbd /tmp/disk.sock
  qemu-img info 'nbd+unix:///?socket=/tmp/disk.sock'
  vduse serve memory:1G --nbd tcp:10809 --name scratch`;

export function serveCommand(context: CommandContext): Command {
  return createCommand('serve', 'serve an image over NBD, without the kernel and without root')
    .usage('[options] --nbd <address> <image>')
    .argument('<image>', 'image file, block device, null:SIZE or memory:SIZE')
    .addOption(
      new Option('--nbd <address>', 'where to listen (required); may be given several times')
        .argParser(collectAddress)
        .makeOptionMandatory(),
    )
    .addOption(checkedOption('-n, --name <name>', "device name (default: made of the image's)", parseName))
    .option('--export-name <name>', "the NBD export's name", '')
    .option('-r, --read-only', 'open the image read-only and give a read-only disk')
    .addOption(
      checkedOption(
        '--queues <n>',
        'queues of the device (default: 1)',
        integerIn({ min: 1, max: limits.queueCountMax }),
      ),
    )
    .addOption(
      checkedOption(
        '--queue-size <n>',
        'elements of each queue (default: 256)',
        powerOfTwoIn({ min: limits.queueSizeMin, max: limits.queueSizeMax }),
      ),
    )
    .option('--bounce', "copy data through the bounce region, as the kernel's drivers do")
    .option('--json', 'print events as lines of JSON')
    .addOption(logLevelOption())
    .addOption(logFormatOption())
    .addHelpText('after', examples)
    .action(async (image: string, flags: ServeFlags) => {
      const { runServe } = await import('../support/run-serve.js');
      await runServe(image, flags, context);
    });
}

function parseName(name: string): string {
  checkDeviceName(name);
  return name;
}

function collectAddress(text: string, before: readonly NbdAddress[] = []): NbdAddress[] {
  return [...before, checked('--nbd', () => parseAddress(text))];
}

function parseAddress(text: string): NbdAddress {
  const tcp = /^tcp:(\d*)$/.exec(text);
  if (tcp === null) {
    // Nobody means a socket of such a name.
    if (/^(?!unix:)[^/]*:/.test(text)) {
      throw new VduseError('INVALID_ARGUMENT', `'${text}' is neither a path nor tcp:PORT`, {
        hint: "TCP is on this machine's loopback only, such as tcp:10809; a path may begin with ./",
      });
    }
    return { type: 'unix', path: text.replace(/^unix:/, '') };
  }
  const port = tcp[1] === '' ? NBD_PORT : Number(tcp[1]);
  if (port > 65_535) {
    throw new VduseError('INVALID_ARGUMENT', `'${text}': a port is at most 65535`);
  }
  return { type: 'tcp', port };
}
