/** vduse resize: another size for a disk that is being exported. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { VduseError } from '../../base/errors.js';
import { vdpaBusDevice } from '../../native/vdpa-bus.js';
import { type CommandContext, checked, createCommand, parseDeviceName } from '../support/command.js';
import { connectToExport } from '../support/connect.js';
import { blockDeviceSize, queryNode, type ServedNode } from '../support/devices.js';
import type { QmpClient } from '../support/qmp-client.js';
import { formatSize, parseSize, roundUpToSectors, sectorBytes } from '../support/size.js';

const examples = `
The image is resized with the disk, and whoever uses the disk sees it at once; a file system on it has to be
grown afterwards (resize2fs, xfs_growfs). SIZE is as for create, rounded up to a multiple of ${sectorBytes};
+SIZE adds to what there is.

Examples:
  vduse resize disk 20G
  vduse resize disk +5G
  vduse resize disk 1G --shrink`;

/** How long the kernel may take to notice; it does within milliseconds. */
const NOTICED_MS_MAX = 2000;
const NOTICED_STEP_MS = 50;

export function resizeCommand(context: CommandContext): Command {
  return createCommand('resize', 'change the size of an exported disk')
    .argument('<name>', 'device name, as `vduse list` shows it')
    .argument('<size>', 'such as 20G or +5G')
    .option('--shrink', 'allow the new size to be smaller: what is beyond it is lost')
    .addHelpText('after', examples)
    .action(async (name: string, sizeText: string, flags: { shrink?: true }) => {
      checked('resize', () => parseDeviceName(name));
      const parsed = checked('resize', () => parseSize(sizeText.replace(/^\+/, '')));
      const client = await connectToExport(name);
      try {
        const node = await queryNode(client);
        if (node === undefined) {
          throw new VduseError('NOT_FOUND', `'${name}' has no image any more: it is being taken away`);
        }
        const size = roundUpToSectors(sizeText.startsWith('+') ? node.size + parsed : parsed);
        await resize({ name, client, node, size, shrink: flags.shrink === true }, context);
      } finally {
        client.close();
      }
    });
}

interface ResizeRequest {
  readonly name: string;
  readonly client: QmpClient;
  readonly node: ServedNode;
  readonly size: number;
  readonly shrink: boolean;
}

async function resize(request: ResizeRequest, context: CommandContext): Promise<void> {
  const { name, client, node, size } = request;
  if (node.readOnly) {
    throw new VduseError('IMAGE_READ_ONLY', `'${name}' is exported read-only: it can't be resized`);
  }
  if (size < node.size && !request.shrink) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `'${name}' has ${formatSize(node.size)}; ${formatSize(size)} would cut off its end`,
      { hint: 'Shrink the file system on it first, then resize with --shrink.' },
    );
  }
  await client.execute('block_resize', { 'node-name': node.nodeName, size });
  const path = vdpaBusDevice(name)?.blockDevice;
  await noticed(path, size);
  const place = path === undefined ? name : `${name} (${path})`;
  context.print(`${place}: ${formatSize(node.size)} -> ${formatSize(size)}\n`);
  const seen = blockDeviceSize(path);
  if (seen !== undefined && seen > size) {
    context.terminal.say(`${path} still has ${formatSize(seen)}: the kernel has not noticed yet`);
  }
}

/** The kernel reads the new size after an interrupt; a script that goes on wants to see it. */
async function noticed(path: string | undefined, size: number): Promise<void> {
  const deadline = Date.now() + NOTICED_MS_MAX;
  while (path !== undefined && blockDeviceSize(path) !== size && Date.now() < deadline) {
    await sleep(NOTICED_STEP_MS);
  }
}
