/** Commands about the NBD server (QEMU: qapi/block-export.json). The last three are older than block-export-add. */
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { choice, jsonScalars as s, struct } from '../../qmp/qapi.js';
import { nbdServerAddArguments, nbdServerStartArguments, toNbdServerStart } from '../options/nbd-options.js';
import type { StorageDaemon } from '../storage-daemon.js';

export function addNbdCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addAction('nbd-server-start', nbdServerStartArguments, (options) =>
    daemon.startNbdServer(toNbdServerStart(options)),
  );
  commands.addAction('nbd-server-stop', struct({}), () => daemon.stopNbdServer());
  commands.addAction('nbd-server-add', nbdServerAddArguments, async (options) => {
    const { device, name = device, writable = false, description, bitmap } = options;
    const node = daemon.nodes.find(({ nodeName }) => nodeName === device);
    if (node === undefined) {
      throw new VduseError('NOT_FOUND', `Cannot find device='${device}' nor node-name='${device}'`);
    }
    await daemon.addExport({
      type: 'nbd',
      id: name,
      nodeName: device,
      name,
      // Unlike block-export-add it does not insist.
      writable: writable && !node.readOnly,
      ...(description === undefined ? {} : { description }),
      ...(bitmap === undefined ? {} : { bitmaps: [bitmap] }),
    });
  });
  commands.addAction(
    'nbd-server-remove',
    struct({ name: s.str, mode: choice('safe', 'hard').optional() }),
    ({ name, mode }) => {
      const found = daemon.findExport(name);
      if (found !== undefined && found.type !== 'nbd') {
        throw new VduseError('INVALID_ARGUMENT', `Block export '${name}' is not an NBD export`);
      }
      return daemon.deleteExport(name, mode);
    },
  );
}
