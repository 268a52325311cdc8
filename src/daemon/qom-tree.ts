/** The daemon's objects as a tree of properties, made anew for each look at it. */
import { VduseError } from '../base/errors.js';
import type { ThrottleLimits } from '../block/throttle-group.js';
import { QmpError } from '../qmp/errors.js';
import type { JsonValue } from '../qmp/json-value.js';
import { checkOptions, jsonScalars, struct } from '../qmp/qapi.js';
import type { Authorization } from './options/authz-options.js';
import { objectOptions, toUserObject, type UserObject } from './options/object-options.js';
import { fromThrottleLimits, limitNames, throttleLimitsStruct } from './options/throttle-options.js';
import type { StorageDaemon } from './storage-daemon.js';

/** A property that has a value, or a child, which has properties of its own. */
export interface QomProperty {
  readonly type: string;
  readonly value?: JsonValue;
  readonly child?: QomObject;
  /** Absent: it is not writable. */
  readonly set?: (value: JsonValue) => Promise<void>;
}

export type QomObject = ReadonlyMap<string, QomProperty>;

/** An absolute path, or the end of one. Throws DeviceNotFound, as QEMU does. */
export function findObject(daemon: StorageDaemon, path: string): QomObject {
  const root = rootObject(daemon);
  const starts = path.startsWith('/') ? [root] : [root, ...children(root)];
  const found = starts.map((start) => walk(start, path)).filter((object) => object !== undefined);
  if (found.length > 1) {
    throw new VduseError('INVALID_ARGUMENT', `Path '${path}' does not uniquely identify an object`);
  }
  if (found.length === 0) {
    throw new QmpError('DeviceNotFound', `Device '${path}' not found`);
  }
  return found[0];
}

export function typeOf(object: QomObject): JsonValue {
  return object.get('type')?.value ?? 'container';
}

/** Without the slash at its end. */
export function pathOf(path: string): string {
  return path.replace(/\/+$/, '');
}

function children(object: QomObject): QomObject[] {
  return [...object.values()].flatMap(({ child }) => (child === undefined ? [] : [child]));
}

function walk(start: QomObject, path: string): QomObject | undefined {
  const names = path.split('/').filter((part) => part !== '');
  return names.reduce<QomObject | undefined>((object, name) => object?.get(name)?.child, start);
}

function rootObject(daemon: StorageDaemon): QomObject {
  const objects = daemon.objects.map((object) => [object.id, objectOf(daemon, object)] as const);
  const chardevs = daemon.chardevs.map(
    ({ id, filename }) => [id, plainObject(filename === 'null' ? 'chardev-null' : 'chardev-socket')] as const,
  );
  return new Map([
    ['type', typeProperty('container')],
    ...container('chardevs', chardevs),
    ...container('objects', objects),
  ]);
}

/** QEMU makes a container when something is to go into it. */
function container(
  name: string,
  members: readonly (readonly [string, QomObject])[],
): readonly (readonly [string, QomProperty])[] {
  if (members.length === 0) {
    return [];
  }
  const child = new Map<string, QomProperty>([['type', typeProperty('container')]]);
  for (const [id, object] of members) {
    child.set(id, { type: `child<${typeOf(object)}>`, child: object });
  }
  return [[name, { type: 'child<container>', child }]];
}

function objectOf(daemon: StorageDaemon, object: UserObject): QomObject {
  if (object.type === 'throttle-group') {
    return throttleGroup(daemon, object.id, object.limits);
  }
  return 'isAllowed' in object ? authorization(daemon, object) : plainObject(object.type);
}

/** No property tells what a secret holds. */
function plainObject(type: string): QomObject {
  return new Map([['type', typeProperty(type)]]);
}

function typeProperty(type: string): QomProperty {
  return { type: 'string', value: type };
}

const limitsOnly = struct({ limits: throttleLimitsStruct(jsonScalars) });

function throttleGroup(daemon: StorageDaemon, id: string, limits: ThrottleLimits): QomObject {
  const values = fromThrottleLimits(limits);
  const afterwards = (): Promise<void> =>
    Promise.reject(
      new VduseError('INVALID_ARGUMENT', 'Property cannot be set after initialization', {
        hint: "set the property 'limits'",
      }),
    );
  const single = limitNames.map(
    (name) => [`x-${name}`, { type: 'int', value: values[name], set: afterwards }] as const,
  );
  const set = async (value: JsonValue): Promise<void> =>
    daemon.setThrottleLimits(id, checkOptions(limitsOnly, { limits: value }).limits);
  return new Map<string, QomProperty>([
    ['type', typeProperty('throttle-group')],
    ['limits', { type: 'ThrottleLimits', value: values, set }],
    ...single,
  ]);
}

/** QEMU's properties of authorization objects, all but those of a file, which is changed itself. */
function authorization(daemon: StorageDaemon, { options }: Authorization): QomObject {
  const type = options['qom-type'];
  const property = (name: string, valueType: string, value: unknown): [string, QomProperty] => {
    const set = async (changed: JsonValue): Promise<void> => {
      const checked = checkOptions(objectOptions.json, { ...options, [name]: changed });
      await daemon.setAuthorization(toUserObject(checked) as Authorization & UserObject);
    };
    return [name, { type: valueType, value: value as JsonValue, set }];
  };
  switch (options['qom-type']) {
    case 'authz-simple':
      return new Map([['type', typeProperty(type)], property('identity', 'string', options.identity)]);
    case 'authz-list':
      return new Map([
        ['type', typeProperty(type)],
        property('policy', 'QAuthZListPolicy', options.policy ?? 'deny'),
        property('rules', 'QAuthZListRule', options.rules ?? []),
      ]);
    default:
      return plainObject(type);
  }
}
