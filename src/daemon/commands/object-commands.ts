/** Commands about objects (QEMU: qapi/qom.json). */
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { jsonScalars as s, struct } from '../../qmp/qapi.js';
import { objectOptions, toUserObject } from '../options/object-options.js';
import type { StorageDaemon } from '../storage-daemon.js';

export function addObjectCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('object-add', objectOptions.json, (options) => daemon.addObject(toUserObject(options)));
  commands.addAction('object-del', struct({ id: s.str }), (options) => daemon.deleteObject(options.id));
}
