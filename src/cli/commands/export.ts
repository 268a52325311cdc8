/** vduse export: gives a disk image to this machine for as long as the command runs. */
import { availableParallelism } from 'node:os';
import { type Command, Option } from 'commander';
import { parseCpuList } from '../../base/cpu-list.js';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import {
  type CommandContext,
  checkedOption,
  createCommand,
  integerIn,
  parseDeviceName,
  powerOfTwoIn,
} from '../support/command.js';
import { logFormatOption, logLevelOption } from '../support/log-options.js';
import type { ExportFlags } from '../support/run-export.js';

const QUEUES_DEFAULT_MAX = 4;
const THREADS_MAX = 256;

const examples = `
Prints the disk's path and serves it until Ctrl-C or SIGTERM, which takes it away after the requests in flight.
Needs root. Kernel modules that are missing are loaded.

IMAGE is a raw image, a block device such as /dev/sdb, or for experiments null:SIZE, which stores nothing,
and memory:SIZE, which forgets when it ends. Also a filename as QEMU takes it: a URL such as nbd://HOST/EXPORT,
options such as driver=raw,offset=1M,file.driver=file,file.filename=disk.img, or json:{...}.

Examples:
  vduse export disk.img
  vduse export disk.img --name data --serial DATA-0001 --read-only
  vduse export /dev/vg0/lv0 --cache-direct --queues 4
  vduse export disk.img --vhost          for a virtual machine: prints /dev/vhost-vdpa-N
  vduse export disk.img --vhost-user disk.sock    for a virtual machine, by QEMU's vhost-user-blk-pci
  vduse export memory:1G --json | while read -r event; do ...; done`;

export function exportCommand(context: CommandContext): Command {
  const queues = Math.min(QUEUES_DEFAULT_MAX, availableParallelism());
  const queueSizes = { min: limits.queueSizeMin, max: limits.queueSizeMax };
  return createCommand('export', 'make an image appear as /dev/vdX')
    .argument('<image>', 'image file, block device, null:SIZE or memory:SIZE')
    .option('-r, --read-only', 'open the image read-only and give a read-only disk')
    .addOption(
      checkedOption('-n, --name <name>', "device name (default: made of the image's)", parseDeviceName),
    )
    .addOption(
      checkedOption('--serial <text>', 'serial number, up to 20 bytes (default: the name)', parseSerial),
    )
    .addOption(
      checkedOption(
        '--queues <n>',
        'queues of the device',
        integerIn({ min: 1, max: limits.queueCountMax }),
      ).default(queues, `${QUEUES_DEFAULT_MAX}, or one per core where there are fewer`),
    )
    .addOption(
      checkedOption('--queue-size <n>', 'elements of each queue', powerOfTwoIn(queueSizes)).default(256),
    )
    .addOption(
      checkedOption(
        '--block-size <bytes>',
        '512 to 4096 (default: what the image takes)',
        powerOfTwoIn({ min: 512, max: 4096 }),
      ),
    )
    .option('--no-attach', 'make the VDUSE device, but leave attaching it to `vdpa dev add`')
    .option('--vhost', 'attach it as a device for a virtual machine')
    .option('--vhost-user <socket>', 'serve it to a virtual machine on a socket; no VDUSE, no root needed')
    .option('--cache-direct', "bypass the host's page cache (O_DIRECT)")
    .addOption(
      new Option('--discard <mode>', 'what becomes of discards')
        .choices(['unmap', 'ignore'])
        .default('unmap'),
    )
    .addOption(
      new Option('--detect-zeroes <mode>', 'turn writes of zeroes into efficient ones')
        .choices(['off', 'on', 'unmap'])
        .default('off'),
    )
    .addOption(
      new Option('--aio <mode>', 'how the image is read and written (default: io_uring)').choices([
        'native',
        'io_uring',
        'threads',
      ]),
    )
    .addOption(
      checkedOption(
        '--threads <n>',
        'threads that serve the queues (default: one per core)',
        integerIn({ min: 1, max: THREADS_MAX }),
      ),
    )
    .addOption(
      checkedOption('--cpus <list>', 'processors for these threads, one each, such as 2-3', parseCpuList),
    )
    .addOption(
      checkedOption('--irq-cpus <list>', "processors that take the queues' interrupts", parseCpuList),
    )
    .addOption(
      checkedOption(
        '--poll-us <n>',
        'microseconds to look for requests before sleeping (default: 100, or 0 with --cache-direct)',
        integerIn({ min: 0, max: limits.pollUsMax }),
      ),
    )
    .option('--json', 'print events as lines of JSON')
    .addOption(checkedOption('--interval <seconds>', 'between two statistics', parseInterval).default(1))
    .addOption(logLevelOption())
    .addOption(logFormatOption())
    .addHelpText('after', examples)
    .action(async (image: string, flags: ExportFlags) => {
      // Loaded when it is wanted: the other commands, and this one's help, are quicker without it.
      const { runExport } = await import('../support/run-export.js');
      context.exitStatus = await runExport(image, flags, context);
    });
}

const INTERVAL_SECONDS = { min: 0.1, max: 86_400 };

function parseInterval(text: string): number {
  const seconds = Number(text);
  if (!/^[\d.]+$/.test(text) || !(seconds >= INTERVAL_SECONDS.min && seconds <= INTERVAL_SECONDS.max)) {
    throw new VduseError('INVALID_ARGUMENT', `'${text}' is no number of seconds from 0.1 to a day`);
  }
  return seconds;
}

function parseSerial(text: string): string {
  if (Buffer.byteLength(text) > limits.serialBytesMax) {
    throw new VduseError('INVALID_ARGUMENT', `'${text}' is longer than ${limits.serialBytesMax} bytes`);
  }
  return text;
}
