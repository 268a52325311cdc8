/** vduse remove: ends an export, or clears away a device whose process is gone. */
import { existsSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Command } from 'commander';
import { VduseError } from '../../base/errors.js';
import { vdpaBusDevice } from '../../native/vdpa-bus.js';
import { type CommandContext, checked, createCommand, parseDeviceName } from '../support/command.js';
import { connectToExport } from '../support/connect.js';
import { controlSocketPath } from '../support/control-socket.js';
import { deviceExists } from '../support/devices.js';
import { describeUse, diskUses } from '../support/disk-use.js';
import type { QmpClient } from '../support/qmp-client.js';

const examples = `
Ends an export that runs, after the requests in flight, as Ctrl-C does. A device that was left behind by a
process that is gone (killed, crashed) is served once more: what waits for it gets I/O errors, then it goes.

Examples:
  vduse remove disk
  vduse remove disk --force       though it is mounted`;

const POLL_MS = 100;

export function removeCommand(context: CommandContext): Command {
  return createCommand('remove', 'end an export, or remove a device that was left behind')
    .argument('<name>', 'device name, as `vduse list` shows it')
    .option('-f, --force', 'also when the disk is mounted or in use otherwise')
    .addHelpText('after', examples)
    .action(async (name: string, flags: { force?: true }) => {
      checked('remove', () => parseDeviceName(name));
      let client: QmpClient;
      try {
        client = await connectToExport(name);
      } catch (error) {
        if (!(error instanceof VduseError && error.code === 'DEVICE_LEFT_BEHIND')) {
          throw error;
        }
        await removeLeftBehind(name, context);
        return;
      }
      try {
        checkUnused(name, flags.force === true);
        await endExport(name, client, context);
      } finally {
        client.close();
      }
    });
}

function checkUnused(name: string, force: boolean): void {
  const path = vdpaBusDevice(name)?.blockDevice;
  const uses = path === undefined ? [] : diskUses(path);
  if (uses.length > 0 && !force) {
    throw new VduseError('BUSY', `'${name}' is in use: ${uses.map(describeUse).join('; ')}`, {
      hint: 'Unmount or close it first, or remove it with --force.',
    });
  }
}

async function endExport(name: string, client: QmpClient, context: CommandContext): Promise<void> {
  await client.execute('quit');
  await context.terminal.during(`waiting for ${name} to go away`, gone(name));
  context.print(`${name} has been taken away\n`);
}

/** Until the device has gone, and then its control socket, which is the last thing that an export takes down. */
async function gone(name: string): Promise<void> {
  while (deviceExists(name) || existsSync(controlSocketPath(name))) {
    await sleep(POLL_MS);
  }
}

async function removeLeftBehind(name: string, context: CommandContext): Promise<void> {
  const { terminal } = context;
  const { removeLeftBehindDevice } = await import('../../daemon/left-behind-device.js');
  const { terminalLogger } = await import('../support/logger.js');
  const logger = terminalLogger(terminal, { logLevel: 'warn', logFormat: 'text' });
  // Leaving half-way would leave it behind once more.
  const onSignal = (): void => {
    terminal.say('Waiting for the kernel to take the device off the bus, which cannot be cancelled.');
  };
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const signal of signals) {
    process.on(signal, onSignal);
  }
  try {
    const work = removeLeftBehindDevice(name, { logger });
    const { answered } = await terminal.during(`removing ${name}`, work);
    rmSync(controlSocketPath(name), { force: true });
    const ended = answered === 0 ? '' : `; ${answered} requests that waited for it ended with I/O errors`;
    context.print(`${name} was left behind and has been removed${ended}\n`);
  } finally {
    for (const signal of signals) {
      process.off(signal, onSignal);
    }
  }
}
