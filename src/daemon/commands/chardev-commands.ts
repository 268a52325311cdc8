/** Commands about character devices (QEMU: qapi/char.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { compact, jsonScalars as s, struct } from '../../qmp/qapi.js';
import { chardevAddArguments, toChardevAdd } from '../options/chardev-options.js';
import type { StorageDaemon } from '../storage-daemon.js';

const chardevInfo = struct({ label: s.str, filename: s.str, 'frontend-open': s.bool });

export function addChardevCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addQuery(
    'query-chardev',
    struct({}),
    () =>
      daemon.chardevs.map(({ id, filename, isAttached }) => ({
        label: id,
        filename,
        'frontend-open': isAttached,
      })),
    z.array(chardevInfo),
  );
  commands.addQuery(
    'query-chardev-backends',
    struct({}),
    () => ['null', 'socket'].map((name) => ({ name })),
    z.array(struct({ name: s.str })),
  );
  commands.addAction('chardev-add', chardevAddArguments, async (options) => {
    const { id } = options;
    if (daemon.chardevs.some((chardev) => chardev.id === id)) {
      throw new VduseError('ALREADY_EXISTS', `Chardev with id '${id}' already exists`);
    }
    try {
      await daemon.addChardev(toChardevAdd(options));
    } catch (error) {
      if (!(error instanceof VduseError)) {
        throw error;
      }
      const { code, message, hint } = error;
      throw new VduseError(code, `Failed to add chardev '${id}': ${message}`, {
        cause: error,
        ...compact({ hint }),
      });
    }
  });
  commands.addAction('chardev-remove', struct({ id: s.str }), ({ id }) => daemon.removeChardev(id));
}
