/**
 * What a filename stands for, as QEMU takes filenames: a path, a URL or another form with a protocol, options with
 * dotted keys, or `json:` and an object. The result is what blockdev-add takes, without a node name.
 */
import { VduseError } from '../../base/errors.js';
import { parseJsonText } from '../../qmp/json-stream.js';
import type { JsonObject, JsonValue } from '../../qmp/json-value.js';
import { parseKeyval } from '../../qmp/keyval.js';
import { checkOptions } from '../../qmp/qapi.js';
import { type BlockdevOptions, blockdevOptions } from './blockdev-options.js';

const invalid = (message: string, hint?: string) => new VduseError('INVALID_ARGUMENT', message, { hint });

/** The options that the filename stands for; undefined when it is a path. Throws INVALID_ARGUMENT. */
export function filenameOptions(filename: string): BlockdevOptions | undefined {
  if (filename.startsWith('driver=')) {
    return checkOptions(blockdevOptions.keyval, parseKeyval(filename).options);
  }
  const options = parseFilename(filename);
  return options === undefined ? undefined : checkOptions(blockdevOptions.json, options);
}

const protocols: Readonly<Record<string, (filename: string) => JsonObject>> = {
  json: parseJson,
  nbd: (filename) => (filename.startsWith('nbd://') ? parseNbdUrl(filename) : parseNbd(filename)),
  'nbd+tcp': parseNbdUrl,
  'nbd+unix': parseNbdUrl,
  nbds: parseNbdUrl,
  'nbds+tcp': parseNbdUrl,
  'nbds+unix': parseNbdUrl,
  rbd: parseRbd,
  http: (url) => ({ driver: 'http', url }),
  https: (url) => ({ driver: 'https', url }),
  file: (filename) => ({ driver: 'file', filename: filename.slice('file:'.length) }),
  host_device: (filename) => ({ driver: 'host_device', filename: filename.slice('host_device:'.length) }),
  'null-co': () => ({ driver: 'null-co' }),
};

/** As filenameOptions, for drivers that there may not be; without the form of dotted keys. */
export function parseFilename(filename: string): JsonObject | undefined {
  // A colon behind a slash is part of a name.
  const protocol = /^([A-Za-z][\w+.-]*):/.exec(filename)?.[1];
  if (protocol === undefined) {
    return undefined;
  }
  if (!Object.hasOwn(protocols, protocol)) {
    throw invalid(
      `Unknown protocol '${protocol}'`,
      `A file of this name is written ./${filename}; protocols: ${Object.keys(protocols).join(', ')}.`,
    );
  }
  return protocols[protocol](filename);
}

function parseJson(filename: string): JsonObject {
  const message = parseJsonText(filename.slice('json:'.length));
  if (message.error !== undefined) {
    throw invalid(`Could not parse the JSON options: ${message.error}`);
  }
  const { value } = message;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalid('Invalid JSON object given');
  }
  return expandDots(value as JsonObject);
}

/** `{"file.driver": "file"}` is `{"file": {"driver": "file"}}`. */
function expandDots(object: JsonObject): JsonObject {
  const result: { [key: string]: JsonValue | undefined } = {};
  for (const [key, value] of Object.entries(object)) {
    const inner =
      typeof value === 'object' && value !== null && !Array.isArray(value)
        ? expandDots(value as JsonObject)
        : value;
    const [first, ...rest] = key.split('.');
    const nested = rest.reduceRight<JsonValue | undefined>((below, name) => ({ [name]: below }), inner);
    result[first] = merge(Object.hasOwn(result, first) ? result[first] : undefined, nested, key);
  }
  return result;
}

function merge(old: JsonValue | undefined, more: JsonValue | undefined, key: string): JsonValue | undefined {
  if (old === undefined) {
    return more;
  }
  if (typeof old !== 'object' || typeof more !== 'object' || old === null || more === null) {
    throw invalid(`Parameter '${key}' used inconsistently`);
  }
  const merged: { [name: string]: JsonValue | undefined } = { ...(old as JsonObject) };
  for (const [name, value] of Object.entries(more as JsonObject)) {
    merged[name] = merge(Object.hasOwn(merged, name) ? merged[name] : undefined, value, key);
  }
  return merged;
}

const defaultNbdPort = '10809';

/** The NBD project's URLs (doc/uri.md). `tls-creds` and `tls-hostname` name what the options of the node name. */
function parseNbdUrl(url: string): JsonObject {
  const match = /^nbd(s?)(?:\+(tcp|unix))?:\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?$/.exec(url);
  if (match === null) {
    throw invalid(`'${url}' is not an NBD URL`, 'nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH');
  }
  const [, secure, transport, authority, path, query = ''] = match;
  const parameters = new URLSearchParams(query);
  const take = (name: string): string | undefined => {
    const value = parameters.get(name) ?? undefined;
    parameters.delete(name);
    return value;
  };
  const socket = take('socket');
  const credentials = take('tls-creds');
  const hostname = take('tls-hostname');
  const unknown = [...parameters.keys()][0];
  if (unknown !== undefined) {
    throw invalid(`'${url}': unknown parameter '${unknown}'`, 'known: socket, tls-creds, tls-hostname');
  }
  if ((secure === 's') !== (credentials !== undefined)) {
    throw invalid(
      `'${url}': ${secure === 's' ? 'nbds:// needs tls-creds=ID' : 'tls-creds is for nbds://'}`,
      'tls-creds names a tls-creds-x509 or tls-creds-psk object.',
    );
  }
  const exportName = decode(url, path.replace(/^\/+/, ''));
  return {
    driver: 'nbd',
    server: nbdServer(url, { isUnix: transport === 'unix', authority, socket }),
    ...(exportName === '' ? {} : { export: exportName }),
    ...(credentials === undefined ? {} : { 'tls-creds': credentials }),
    ...(hostname === undefined ? {} : { 'tls-hostname': hostname }),
  };
}

function nbdServer(
  url: string,
  where: { readonly isUnix: boolean; readonly authority: string; readonly socket: string | undefined },
): JsonObject {
  const { isUnix, authority, socket } = where;
  if (isUnix) {
    if (authority !== '' || socket === undefined) {
      throw invalid(`'${url}': a Unix socket is given as nbd+unix:///EXPORT?socket=PATH`);
    }
    return { type: 'unix', path: socket };
  }
  const match = /^(\[[^\]]*\]|[^:@]*)(?::(\d+))?$/.exec(authority);
  if (match === null || socket !== undefined) {
    throw invalid(`'${url}': the server is given as HOST or HOST:PORT`);
  }
  const [, host, port = defaultNbdPort] = match;
  const plain = host.startsWith('[') ? host.slice(1, -1) : decode(url, host);
  return { type: 'inet', host: plain === '' ? 'localhost' : plain, port };
}

/** The form before URLs: nbd:HOST:PORT or nbd:unix:PATH, and :exportname=NAME. */
function parseNbd(filename: string): JsonObject {
  const [where, exportName] = splitOnce(filename.slice('nbd:'.length), ':exportname=');
  const more = exportName === undefined || exportName === '' ? {} : { export: exportName };
  if (where.startsWith('unix:')) {
    return { driver: 'nbd', server: { type: 'unix', path: where.slice('unix:'.length) }, ...more };
  }
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(where);
  if (match === null) {
    throw invalid(
      `'${filename}' names no NBD server`,
      'nbd:HOST:PORT, nbd:unix:PATH or nbd://HOST:PORT/EXPORT',
    );
  }
  return { driver: 'nbd', server: { type: 'inet', host: match[1] ?? match[2], port: match[3] }, ...more };
}

function decode(url: string, text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid(`'${url}': '${text}' is not percent-encoded as a URL is`);
  }
}

/** rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:KEY=VALUE...], where a backslash takes a delimiter's meaning away. */
function parseRbd(filename: string): JsonObject {
  const text = filename.slice('rbd:'.length);
  const [pool, behindPool] = splitEscaped(text, '/');
  if (behindPool === undefined || pool === '') {
    const what = pool === '' ? 'Pool name is required' : 'Image name is required behind that of the pool';
    throw invalid(what, 'rbd:POOL/IMAGE[@SNAPSHOT][:KEY=VALUE...]');
  }
  const [name, pairs] = splitEscaped(behindPool, ':');
  const [path, snapshot] = splitEscaped(name, '@');
  const [first, second] = splitEscaped(path, '/');
  const [namespace, image] = second === undefined ? [undefined, first] : [first, second];
  if (image === '') {
    throw invalid(`'${filename}': the image's name is missing`, 'rbd:POOL/IMAGE[@SNAPSHOT][:KEY=VALUE...]');
  }
  return {
    driver: 'rbd',
    pool: unescapeName(pool),
    ...(namespace === undefined ? {} : { namespace: unescapeName(namespace) }),
    image: unescapeName(image),
    ...(snapshot === undefined ? {} : { snapshot: unescapeName(snapshot) }),
    ...rbdPairs(filename, pairs),
  };
}

/** Keys of the filename by the names that the node's options have. */
const rbdKeys: Readonly<Record<string, string>> = {
  conf: 'conf',
  id: 'user',
  namespace: 'namespace',
  'key-secret': 'key-secret',
};

function rbdPairs(filename: string, pairs: string | undefined): JsonObject {
  const options: { [name: string]: JsonValue } = {};
  for (let rest = pairs; rest !== undefined && rest !== ''; ) {
    const [pair, next] = splitEscaped(rest, ':');
    const [key, value] = splitEscaped(pair, '=');
    if (value === undefined) {
      throw invalid(`conf option ${key} has no value`, 'rbd:POOL/IMAGE[@SNAPSHOT][:KEY=VALUE...]');
    }
    if (key === 'mon_host') {
      options['server'] = unescapeName(value)
        .split(/[;, ]+/)
        .map(rbdServer);
    } else if (Object.hasOwn(rbdKeys, key)) {
      options[rbdKeys[key]] = unescapeName(value);
    } else {
      throw invalid(
        `'${filename}': unknown key '${key}'`,
        'known: conf, id, namespace, key-secret, mon_host',
      );
    }
    rest = next;
  }
  return options;
}

const defaultMonitorPort = '6789';

function rbdServer(text: string): JsonObject {
  const match = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(text);
  if (match === null) {
    throw invalid(`'${text}' is no address of a monitor`, 'HOST or HOST:PORT');
  }
  return { host: match[1] ?? match[2], port: match[3] ?? defaultMonitorPort };
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + separator.length)];
}

/** Splits at the first delimiter that no backslash stands before. */
function splitEscaped(text: string, delimiter: string): [string, string | undefined] {
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '\\') {
      at++;
    } else if (text[at] === delimiter) {
      return [text.slice(0, at), text.slice(at + 1)];
    }
  }
  return [text, undefined];
}

function unescapeName(text: string): string {
  return text.replace(/\\(.)/gs, '$1');
}
