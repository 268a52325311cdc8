/** vduse list: the disks that this machine serves, or the exports of a storage daemon. */
import type { Command } from 'commander';
import { type CommandContext, createCommand } from '../support/command.js';
import { connectToMonitor } from '../support/connect.js';
import { type ExportView, type NodeView, queryExports, queryNodes } from '../support/daemon-view.js';
import { type DeviceSummary, listDevices, listOtherExports } from '../support/devices.js';
import { formatSize } from '../support/size.js';
import { formatTable } from '../support/table.js';

const examples = `
Shows all VDUSE devices, whoever serves them, and what 'vduse export' serves otherwise. The image is known of those
that vduse exports. With --monitor it shows what that daemon exports, of whatever type, and nothing else.

Examples:
  vduse list
  vduse list --monitor /run/vduse/qmp.sock
  vduse list --json | jq -r '.[] | select(.state == "left-behind") | .name'`;

interface ListFlags {
  readonly json?: true;
  readonly monitor?: readonly string[];
}

export function listCommand(context: CommandContext): Command {
  return createCommand('list', 'show the disks that are served')
    .option('--json', 'print them as JSON')
    .option('--monitor <socket>', "show the exports of this monitor's daemon; may be repeated", collect)
    .addHelpText('after', examples)
    .action((flags: ListFlags) =>
      flags.monitor === undefined
        ? showDevices(context, flags.json === true)
        : showExports(context, flags.monitor, flags.json === true),
    );
}

function collect(text: string, before: readonly string[] = []): string[] {
  return [...before, text];
}

async function showDevices(context: CommandContext, json: boolean): Promise<void> {
  const devices = [...(await listDevices()), ...(await listOtherExports())];
  if (json) {
    context.print(`${JSON.stringify(devices.map(toJson), undefined, 2)}\n`);
    return;
  }
  if (devices.length === 0) {
    context.terminal.say('There are no VDUSE devices, and no other exports.');
    return;
  }
  const rows = devices.map((device) => [
    device.name,
    device.type,
    device.path ?? '-',
    device.size === undefined ? '-' : formatSize(device.size),
    describeState(device),
    device.driver ?? '-',
    device.image ?? '-',
  ]);
  context.print(`${formatTable(['NAME', 'TYPE', 'PATH', 'SIZE', 'STATE', 'DRIVER', 'IMAGE'], rows)}\n`);
  for (const { name } of devices.filter((device) => device.state === 'left-behind')) {
    context.terminal.say(`${name} was left behind by a process that is gone: vduse remove ${name}`);
  }
}

interface ListedExport extends ExportView {
  readonly monitor: string;
  /** Absent while the export is on its way out, and its node gone. */
  readonly node: NodeView | undefined;
}

async function showExports(
  context: CommandContext,
  monitors: readonly string[],
  json: boolean,
): Promise<void> {
  const exports: ListedExport[] = [];
  for (const monitor of monitors) {
    const client = await connectToMonitor(monitor);
    try {
      const views = await queryExports(client);
      const nodes = await queryNodes(client);
      exports.push(
        ...views.map((view) => ({
          ...view,
          monitor,
          node: nodes.find(({ nodeName }) => nodeName === view.nodeName),
        })),
      );
    } finally {
      client.close();
    }
  }
  if (json) {
    context.print(`${JSON.stringify(exports.map(exportToJson), undefined, 2)}\n`);
    return;
  }
  if (exports.length === 0) {
    context.terminal.say('There are no exports.');
    return;
  }
  const rows = exports.map(({ id, type, nodeName, node, shuttingDown }) => [
    id,
    type,
    nodeName,
    node === undefined ? '-' : formatSize(node.size),
    shuttingDown ? 'shutting down' : 'served',
    node?.filename ?? '-',
  ]);
  context.print(`${formatTable(['EXPORT', 'TYPE', 'NODE', 'SIZE', 'STATE', 'IMAGE'], rows)}\n`);
}

function exportToJson({ monitor, id, type, nodeName, node, shuttingDown }: ListedExport) {
  const { size = null, filename: image = null } = node ?? {};
  return { monitor, id, type, node: nodeName, size, image, shuttingDown };
}

function describeState(device: DeviceSummary): string {
  const attached = device.attached ? '' : ', not attached';
  switch (device.state) {
    case 'served':
      return device.pid === undefined
        ? `served${attached}`
        : `served by ${device.pid} (${device.command})${attached}`;
    case 'left-behind':
      return `left behind${attached}`;
    case 'unknown':
      return `unknown (ask as root)${attached}`;
  }
}

/** With null for what is not known, so that every object has all members. */
function toJson(device: DeviceSummary): Record<string, unknown> {
  return Object.fromEntries(Object.entries(device).map(([key, value]) => [key, value ?? null]));
}
