/** The daemon's QMP commands, by QEMU's names and with QEMU's answers. */
import { QmpCommandTable } from '../../qmp/command-table.js';
import type { StorageDaemon } from '../storage-daemon.js';
import { addBackupCommands } from './backup-commands.js';
import { addBlockCommands } from './block-commands.js';
import { addChardevCommands } from './chardev-commands.js';
import { addExportCommands } from './export-commands.js';
import { addGeneralCommands } from './general-commands.js';
import { addJobCommands } from './job-commands.js';
import { addNbdCommands } from './nbd-commands.js';
import { addObjectCommands } from './object-commands.js';
import { addQomCommands } from './qom-commands.js';
import { addStatisticsCommands } from './statistics-commands.js';

export function createCommands(daemon: StorageDaemon): QmpCommandTable {
  const commands = new QmpCommandTable();
  addGeneralCommands(commands, daemon);
  addChardevCommands(commands, daemon);
  addBlockCommands(commands, daemon);
  addExportCommands(commands, daemon);
  addNbdCommands(commands, daemon);
  addObjectCommands(commands, daemon);
  addJobCommands(commands, daemon);
  addBackupCommands(commands, daemon);
  addQomCommands(commands, daemon);
  addStatisticsCommands(commands, daemon);
  return commands;
}
