/** The object tree, as far as clients look at it: /objects and /chardevs (QEMU: qapi/qom.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import type { JsonValue } from '../../qmp/json-value.js';
import { anyValue, jsonScalars as s, struct } from '../../qmp/qapi.js';
import { findObject, pathOf, typeOf } from '../qom-tree.js';
import type { StorageDaemon } from '../storage-daemon.js';

const propertyInfo = struct({
  name: s.str,
  type: s.str,
  description: s.str.optional(),
  'default-value': z.unknown().optional(),
});

export function addQomCommands(commands: QmpCommandTable, daemon: StorageDaemon): void {
  commands.addQuery(
    'qom-list',
    struct({ path: s.str }),
    ({ path }) => [...findObject(daemon, path)].map(([name, { type }]) => ({ name, type })),
    z.array(propertyInfo),
  );
  commands.addQuery('qom-get', struct({ path: s.str, property: s.str }), ({ path, property }) => {
    const object = findObject(daemon, path);
    const found = object.get(property);
    if (found === undefined) {
      throw new VduseError('NOT_FOUND', `Property '${typeOf(object)}.${property}' not found`);
    }
    return found.child === undefined ? (found.value ?? null) : `${pathOf(path)}/${property}`;
  });
  const setting = struct({ path: s.str, property: s.str, value: anyValue });
  commands.addAction('qom-set', setting, async ({ path, property, value }) => {
    const object = findObject(daemon, path);
    const found = object.get(property);
    if (found === undefined) {
      throw new VduseError('NOT_FOUND', `Property '${typeOf(object)}.${property}' not found`);
    }
    if (found.set === undefined) {
      throw new VduseError('INVALID_ARGUMENT', `Property '${typeOf(object)}.${property}' is not writable`);
    }
    await found.set(value as JsonValue);
  });
}
