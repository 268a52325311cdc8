/** The daemon's QMP commands, by QEMU's names and with QEMU's answers. */
import { z } from 'zod';
import { QmpCommandTable } from '../qmp/command-table.js';
import { choice, jsonScalars as s, struct } from '../qmp/qapi.js';
import { nodeInfo } from './node-info.js';
import { blockdevOptions, toBlockNodeOptions } from './options/blockdev-options.js';
import { exportOptions, toExportRequest } from './options/export-options.js';
import { objectOptions, toUserObject } from './options/object-options.js';
import type { StorageDaemon } from './storage-daemon.js';
import { qmpVersion } from './version.js';

const noArguments = struct({});

export function createCommands(daemon: StorageDaemon): QmpCommandTable {
  const commands = new QmpCommandTable();
  addGeneralCommands(commands, daemon);
  addBlockCommands(commands, daemon);
  addExportCommands(commands, daemon);
  addObjectCommands(commands, daemon);
  return commands;
}

function addGeneralCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  // The session itself answers qmp_capabilities; being here it is listed.
  commands.addAction('qmp_capabilities', z.unknown(), () => undefined);
  commands.addQuery('query-version', noArguments, () => ({
    qemu: { ...qmpVersion.qemu },
    package: qmpVersion.package,
  }));
  commands.addQuery('query-commands', noArguments, () => commands.names.map((name) => ({ name })));
  commands.addQuery('query-chardev', noArguments, () =>
    daemon.chardevs.map(({ id, filename, isAttached }) => ({
      label: id,
      filename,
      'frontend-open': isAttached,
    })),
  );
  commands.addAction('quit', noArguments, () => daemon.requestShutdown('a QMP client sent quit'));
}

function addBlockCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('blockdev-add', blockdevOptions.json, async (options) => {
    await daemon.addNode(toBlockNodeOptions(options));
  });
  commands.addAction('blockdev-del', struct({ 'node-name': s.str }), (options) =>
    daemon.deleteNode(options['node-name']),
  );
  // There are no backing files: the flat list and the full one are the same.
  commands.addQuery('query-named-block-nodes', struct({ flat: s.bool.optional() }), () =>
    daemon.nodes.map(nodeInfo),
  );
  commands.addAction(
    'block_resize',
    struct({ device: s.str.optional(), 'node-name': s.str.optional(), size: s.int }),
    (options) =>
      daemon.resizeNode({ device: options.device, nodeName: options['node-name'], size: options.size }),
  );
}

function addExportCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('block-export-add', exportOptions.json, async (options) => {
    await daemon.addExport(toExportRequest(options));
  });
  commands.addAction(
    'block-export-del',
    struct({ id: s.str, mode: choice('safe', 'hard').optional() }),
    (options) => daemon.deleteExport(options.id, options.mode),
  );
  commands.addQuery('query-block-exports', noArguments, () =>
    daemon.exports.map((blockExport) => ({
      id: blockExport.id,
      type: blockExport.type,
      'node-name': blockExport.node.nodeName,
      'shutting-down': blockExport.shuttingDown,
    })),
  );
}

function addObjectCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('object-add', objectOptions.json, (options) => daemon.addObject(toUserObject(options)));
  commands.addAction('object-del', struct({ id: s.str }), (options) => daemon.deleteObject(options.id));
}
