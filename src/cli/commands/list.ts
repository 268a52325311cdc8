/** vduse list: the VDUSE devices of this machine. */
import type { Command } from 'commander';
import { type CommandContext, createCommand } from '../support/command.js';
import { type DeviceSummary, listDevices } from '../support/devices.js';
import { formatSize } from '../support/size.js';
import { formatTable } from '../support/table.js';

const examples = `
Shows all VDUSE devices, whoever serves them. The image is known of those that vduse exports.

Examples:
  vduse list
  vduse list --json | jq -r '.[] | select(.state == "left-behind") | .name'`;

export function listCommand(context: CommandContext): Command {
  return createCommand('list', 'show the VDUSE devices')
    .option('--json', 'print them as JSON')
    .addHelpText('after', examples)
    .action(async (flags: { json?: true }) => {
      const devices = await listDevices();
      if (flags.json === true) {
        context.print(`${JSON.stringify(devices.map(toJson), undefined, 2)}\n`);
        return;
      }
      if (devices.length === 0) {
        context.terminal.say('There are no VDUSE devices.');
        return;
      }
      const rows = devices.map((device) => [
        device.name,
        device.path ?? '-',
        device.size === undefined ? '-' : formatSize(device.size),
        describeState(device),
        device.driver ?? '-',
        device.image ?? '-',
      ]);
      context.print(`${formatTable(['NAME', 'PATH', 'SIZE', 'STATE', 'DRIVER', 'IMAGE'], rows)}\n`);
      for (const { name } of devices.filter((device) => device.state === 'left-behind')) {
        context.terminal.say(`${name} was left behind by a process that is gone: vduse remove ${name}`);
      }
    });
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
