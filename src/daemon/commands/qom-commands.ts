/** The object tree, as far as clients look at it: /objects and /chardevs (QEMU: qapi/qom.json). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { QmpCommandTable } from '../../qmp/command-table.js';
import { QmpError } from '../../qmp/errors.js';
import type { JsonValue } from '../../qmp/json-value.js';
import { jsonScalars as s, struct } from '../../qmp/qapi.js';
import type { StorageDaemon } from '../storage-daemon.js';

/** A property that has a value, or a child, which has properties of its own. */
interface QomProperty {
  readonly type: string;
  readonly value?: JsonValue;
  readonly child?: QomObject;
}

type QomObject = ReadonlyMap<string, QomProperty>;

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
    ({ path }) => [...find(daemon, path)].map(([name, { type }]) => ({ name, type })),
    z.array(propertyInfo),
  );
  commands.addQuery('qom-get', struct({ path: s.str, property: s.str }), ({ path, property }) => {
    const found = find(daemon, path).get(property);
    if (found === undefined) {
      throw new VduseError('NOT_FOUND', `Property '${typeAt(daemon, path)}.${property}' not found`);
    }
    return found.child === undefined ? (found.value ?? null) : `${trimmed(path)}/${property}`;
  });
}

/** Throws DeviceNotFound, as QEMU does. */
function find(daemon: StorageDaemon, path: string): QomObject {
  const notFound = () => new QmpError('DeviceNotFound', `Device '${path}' not found`);
  if (!path.startsWith('/')) {
    throw notFound();
  }
  let object = rootObject(daemon);
  for (const name of path.split('/').filter((part) => part !== '')) {
    const { child } = object.get(name) ?? {};
    if (child === undefined) {
      throw notFound();
    }
    object = child;
  }
  return object;
}

function typeAt(daemon: StorageDaemon, path: string): JsonValue {
  return find(daemon, path).get('type')?.value ?? 'container';
}

function trimmed(path: string): string {
  return path.replace(/\/+$/, '');
}

function rootObject(daemon: StorageDaemon): QomObject {
  const objects = daemon.objects.map(({ type, id }) => [id, type] as const);
  const chardevs = daemon.chardevs.map(({ id }) => [id, 'chardev-socket'] as const);
  return new Map([
    ['type', typeProperty('container')],
    ...container('chardevs', chardevs),
    ...container('objects', objects),
  ]);
}

/** QEMU makes a container when something is to go into it. */
function container(
  name: string,
  children: readonly (readonly [string, string])[],
): readonly (readonly [string, QomProperty])[] {
  if (children.length === 0) {
    return [];
  }
  const child = new Map<string, QomProperty>([['type', typeProperty('container')]]);
  for (const [id, type] of children) {
    child.set(id, { type: `child<${type}>`, child: objectOf(type) });
  }
  return [[name, { type: 'child<container>', child }]];
}

function objectOf(type: string): QomObject {
  return new Map([['type', typeProperty(type)]]);
}

function typeProperty(type: string): QomProperty {
  return { type: 'string', value: type };
}
