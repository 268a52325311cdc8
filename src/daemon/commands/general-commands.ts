/** Commands about the daemon itself (QEMU: qapi/control.json, qapi/char.json). */
import { z } from 'zod';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { struct } from '../../qmp/qapi.js';
import type { StorageDaemon } from '../storage-daemon.js';
import { qmpVersion } from '../version.js';

const noArguments = struct({});

export function addGeneralCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
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
