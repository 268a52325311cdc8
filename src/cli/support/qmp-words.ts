/** QMP commands as people write them: a name and KEY=VALUE words, or JSON. And what could come next. */
import { VduseError } from '../../base/errors.js';
import { parseJsonText } from '../../qmp/json-stream.js';
import { isJsonObject, type JsonObject, type JsonValue, setMember } from '../../qmp/json-value.js';
import { nearest } from '../../qmp/nearest.js';
import { parseSize } from './size.js';

export interface WrittenCommand {
  readonly name: string;
  readonly arguments: JsonObject;
}

/** What a command's argument takes: a text, whatever it looks like; an integer; or what the value looks like. */
export type ValueKind = 'text' | 'integer' | 'any';

/** Knows what arguments take; without it they are what they look like. */
export type Schema = Pick<CommandWords, 'kindOf'>;

/** A line of the shell. JSON in it stands as it is: it is not split, and its quotes are its own. Throws INVALID_ARGUMENT. */
export function parseLine(line: string, schema?: Schema): WrittenCommand {
  const [, name, json] = /^(?:([^\s"'{]+)\s+)?(\{.*)$/s.exec(line) ?? [];
  const words = json === undefined ? splitWords(line) : name === undefined ? [json] : [name, json];
  return parseCommand(words, schema);
}

/** Throws INVALID_ARGUMENT. */
export function parseCommand(words: readonly string[], schema?: Schema): WrittenCommand {
  const [name, ...rest] = words;
  if (rest.length === 0 && name.startsWith('{')) {
    return parseRequest(name);
  }
  if (rest.length === 1 && rest[0].startsWith('{')) {
    const args = parseJson(rest[0]);
    if (!isJsonObject(args)) {
      throw new VduseError('INVALID_ARGUMENT', 'the arguments are no JSON object');
    }
    return { name, arguments: args };
  }
  const args: JsonObject = {};
  for (const word of rest) {
    const at = word.indexOf('=');
    if (at <= 0) {
      throw new VduseError('INVALID_ARGUMENT', `'${word}' is no KEY=VALUE`, {
        hint: `Write for example: ${name} node-name=disk0, or ${name} '{"node-name": "disk0"}'`,
      });
    }
    const path = word.slice(0, at).split('.');
    set(args, path, parseValue(word.slice(at + 1), schema?.kindOf(name, path) ?? 'any'));
  }
  return { name, arguments: args };
}

/** A request as it goes over the wire, which is what documentation shows. */
function parseRequest(text: string): WrittenCommand {
  const request = parseJson(text);
  const { execute: name, arguments: args = {} } = isJsonObject(request) ? request : {};
  if (typeof name !== 'string' || !isJsonObject(args)) {
    throw new VduseError('INVALID_ARGUMENT', 'the JSON object is no request', {
      hint: 'Write for example: {"execute": "blockdev-del", "arguments": {"node-name": "disk0"}}',
    });
  }
  return { name, arguments: args };
}

/** What to do about a command that the server does not have. Undefined where it has it. */
export function hintForCommand(name: string, known: readonly string[]): string | undefined {
  if (known.includes(name)) {
    return undefined;
  }
  const near = nearest(name, known);
  return near === undefined ? 'query-commands lists what there is.' : `Did you mean ${near}?`;
}

/** Words as a shell splits them, as far as quotes and backslashes go. */
export function splitWords(line: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  for (const [, double, single, escaped, blank, plain] of line.matchAll(
    /"((?:[^"\\]|\\.)*)"|'([^']*)'|\\(.)|(\s+)|([^\s"'\\]+|["'\\])/g,
  )) {
    if (blank !== undefined) {
      words.push(...(word === undefined ? [] : [word]));
      word = undefined;
    } else {
      word = (word ?? '') + (double?.replace(/\\(.)/g, '$1') ?? single ?? escaped ?? plain);
    }
  }
  return word === undefined ? words : [...words, word];
}

function set(target: JsonObject, path: readonly string[], value: JsonValue): void {
  const [key, ...rest] = path;
  if (rest.length === 0) {
    setMember(target, key, value);
    return;
  }
  const inner = Object.hasOwn(target, key) ? target[key] : undefined;
  const object = isJsonObject(inner) ? inner : {};
  setMember(target, key, object);
  set(object, rest, value);
}

/** A number, a word of JSON, a list or an object; `on` and `off` too; everything else is a text. */
function parseValue(text: string, kind: ValueKind): JsonValue {
  // A text may be quoted all the same.
  if (kind === 'text' && !text.startsWith('"')) {
    return text;
  }
  if (kind === 'integer' && /^\d+(\.\d+)?[KMGTP](iB?)?$/i.test(text)) {
    return parseSize(text);
  }
  if (text === 'on' || text === 'off') {
    return text === 'on';
  }
  if (/^(-?\d+|true|false|null|["[{].*)$/s.test(text)) {
    const message = parseJsonText(text);
    if (message.error === undefined) {
      return message.value;
    }
  }
  return text;
}

function parseJson(text: string): JsonValue {
  const message = parseJsonText(text);
  if (message.error !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', message.error);
  }
  return message.value;
}

/** What a server's query-qmp-schema says of commands and their arguments. */
export class CommandWords {
  readonly #types = new Map<string, JsonObject>();
  readonly commands: readonly string[];

  constructor(schema: JsonValue) {
    const infos = Array.isArray(schema) ? schema.filter(isJsonObject) : [];
    for (const info of infos) {
      this.#types.set(`${info['meta-type'] === 'command' ? 'command ' : ''}${info['name']}`, info);
    }
    this.commands = infos
      .filter((info) => info['meta-type'] === 'command')
      .map((info) => String(info['name']))
      .sort();
  }

  /** What an argument takes, or a member of it. */
  kindOf(command: string, path: readonly string[]): ValueKind {
    const type = this.#typeAt(this.#argumentsOf(command), path);
    const isEnum = this.#types.get(type)?.['meta-type'] === 'enum';
    return type === 'str' || isEnum ? 'text' : type === 'int' ? 'integer' : 'any';
  }

  /** Words that could stand where `line` ends, and the part of it that they would replace. */
  complete(line: string): [string[], string] {
    const words = line.trimStart().split(/\s+/);
    const last = words.at(-1) ?? '';
    const fits = (candidates: readonly string[]) => candidates.filter((word) => word.startsWith(last));
    if (words.length <= 1) {
      return [endedIfOnly(fits(this.commands)), last];
    }
    const type = this.#argumentsOf(words[0]);
    const at = last.indexOf('=');
    if (at >= 0) {
      const key = last.slice(0, at);
      const values = this.#valuesOf(this.#typeAt(type, key.split('.')));
      return [endedIfOnly(fits(values.map((value) => `${key}=${value}`))), last];
    }
    const above = last.split('.').slice(0, -1);
    const members = this.#membersOf(this.#typeAt(type, above));
    const prefix = above.map((name) => `${name}.`).join('');
    return [
      fits(members.flatMap((one) => this.#endingsOf(one.type).map((end) => `${prefix}${one.name}${end}`))),
      last,
    ];
  }

  #argumentsOf(command: string): string {
    return String(this.#types.get(`command ${command}`)?.['arg-type']);
  }

  /** The type of what a path of members leads to. */
  #typeAt(type: string, path: readonly string[]): string {
    return path.reduce(
      (above, name) => this.#membersOf(above).find((member) => member.name === name)?.type ?? '',
      type,
    );
  }

  /** What follows a member's name: a value, or a dot and a member of it. */
  #endingsOf(type: string): string[] {
    switch (this.#types.get(type)?.['meta-type']) {
      case 'object':
        return ['.'];
      case 'alternate':
        return ['=', '.'];
      default:
        return ['='];
    }
  }

  /** The members of an object and of all its variants; those of each object that an alternate may be. */
  #membersOf(type: string): { readonly name: string; readonly type: string }[] {
    const info = this.#types.get(type);
    const written = listOf(info?.['members']);
    const isAlternate = info?.['meta-type'] === 'alternate';
    const own = isAlternate
      ? []
      : written.map(({ name, type: of }) => ({ name: String(name), type: String(of) }));
    const others = new Set(
      [...(isAlternate ? written : []), ...listOf(info?.['variants'])].map((one) => String(one['type'])),
    );
    const all = [...own, ...[...others].flatMap((other) => this.#membersOf(other))];
    return [...new Map(all.map((member) => [member.name, member])).values()];
  }

  #valuesOf(type: string): string[] {
    const values = this.#types.get(type)?.['values'];
    return type === 'bool' ? ['true', 'false'] : Array.isArray(values) ? values.map(String) : [];
  }
}

/** The only word that fits is complete: another one may follow. */
function endedIfOnly(words: string[]): string[] {
  return words.length === 1 ? [`${words[0]} `] : words;
}

function listOf(value: JsonValue | undefined): JsonObject[] {
  return Array.isArray(value) ? value.filter(isJsonObject) : [];
}
