/**
 * KEY=VALUE,... text, the way QEMU's options are written (QEMU: util/keyval.c describes the grammar). Dots in a
 * key lead into objects, numbers after a dot into lists, two commas are one comma of a value, and the first
 * key may be implied. The result is what JSON would have said, with strings for all scalars.
 */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';

export type KeyvalValue = string | KeyvalValue[] | { [key: string]: KeyvalValue };

export interface KeyvalSyntax {
  /** The key of a first value that has none. */
  readonly impliedKey?: string;
  /** Keys that a bare word sets: `server` is server=on, `noserver` is server=off. */
  readonly flags?: readonly string[];
}

export interface KeyvalText {
  readonly options: { [key: string]: KeyvalValue };
  /** `help` or `?` was among the words. */
  readonly help: boolean;
}

interface Tree {
  [key: string]: string | Tree;
}

interface Pair {
  readonly key: string;
  readonly value: string;
}

/** QEMU's bound on the length of what stands between two dots. */
const FRAGMENT_LENGTH_MAX = 127;
/** A QAPI name, which may begin with a vendor's domain. */
const NAME = /^(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*/;
const INDEX = /^\d+/;

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** Throws INVALID_ARGUMENT. */
export function parseKeyval(text: string, syntax: KeyvalSyntax = {}): KeyvalText {
  const tree: Tree = {};
  let help = false;
  let rest = text;
  for (let isFirst = true; rest !== ''; isFirst = false) {
    const word = /^[^=,]*/.exec(rest)![0];
    const isBare = word !== '' && rest[word.length] !== '=';
    if (isBare && (word === 'help' || word === '?')) {
      help = true;
      rest = rest.slice(word.length + 1);
      continue;
    }
    const bare = isBare ? pairOfBareWord(word, isFirst, syntax) : undefined;
    if (bare !== undefined) {
      put(tree, bare);
      rest = rest.slice(word.length + 1);
      continue;
    }
    const fragments = splitKey(word);
    if (isBare) {
      throw invalid(`Expected '=' after parameter '${word}'`);
    }
    const { value, length } = takeValue(rest.slice(word.length + 1));
    putAt(tree, fragments, value);
    rest = rest.slice(word.length + 1 + length);
  }
  return { options: listify(tree, '') as { [key: string]: KeyvalValue }, help };
}

function pairOfBareWord(word: string, isFirst: boolean, syntax: KeyvalSyntax): Pair | undefined {
  if (isFirst && syntax.impliedKey !== undefined) {
    return { key: syntax.impliedKey, value: word };
  }
  if (syntax.flags?.includes(word)) {
    return { key: word, value: 'on' };
  }
  const opposite = word.startsWith('no') ? word.slice(2) : '';
  return syntax.flags?.includes(opposite) ? { key: opposite, value: 'off' } : undefined;
}

/** The value at the start of the text, and how much of the text it takes with the comma behind it. */
function takeValue(text: string): { value: string; length: number } {
  const written = /^(?:[^,]|,,)*/.exec(text)![0];
  return { value: written.replaceAll(',,', ','), length: Math.min(written.length + 1, text.length) };
}

function splitKey(key: string): string[] {
  const fragments: string[] = [];
  let rest = key;
  for (;;) {
    const isIndex = fragments.length > 0 && INDEX.test(rest);
    const fragment = (isIndex ? INDEX : NAME).exec(rest)?.[0] ?? '';
    const next = rest[fragment.length];
    if (fragment === '' || (next !== undefined && next !== '.')) {
      throw invalid(`Invalid parameter '${key}'`);
    }
    if (fragment.length > FRAGMENT_LENGTH_MAX) {
      throw invalid(`Parameter${fragment === key ? '' : ' fragment'} '${fragment}' is too long`);
    }
    fragments.push(fragment);
    if (fragments.length > limits.jsonDepthMax) {
      throw invalid(`Parameter '${key.slice(0, FRAGMENT_LENGTH_MAX)}...' is nested too deeply`);
    }
    if (next === undefined) {
      return fragments;
    }
    rest = rest.slice(fragment.length + 1);
  }
}

function put(tree: Tree, pair: Pair): void {
  putAt(tree, [pair.key], pair.value);
}

/** The last value of a key counts, but a key is either a value or has keys below it. */
function putAt(tree: Tree, fragments: readonly string[], value: string): void {
  let current = tree;
  fragments.forEach((fragment, depth) => {
    const isLeaf = depth === fragments.length - 1;
    const old = Object.hasOwn(current, fragment) ? current[fragment] : undefined;
    if (old !== undefined && (typeof old === 'string') !== isLeaf) {
      throw invalid(`Parameters '${fragments.slice(0, depth + 1).join('.')}.*' used inconsistently`);
    }
    if (isLeaf) {
      current[fragment] = value;
    } else {
      const below = (old as Tree | undefined) ?? {};
      current[fragment] = below;
      current = below;
    }
  });
}

/** Makes lists of the objects whose keys are numbers. `path` is the way there, with a dot at its end. */
function listify(tree: Tree, path: string): KeyvalValue {
  const entries = Object.entries(tree).map(([key, value]): [string, KeyvalValue] => [
    key,
    typeof value === 'string' ? value : listify(value, `${path}${key}.`),
  ]);
  const indexed = entries.filter(([key]) => INDEX.test(key));
  if (indexed.length === 0) {
    return Object.fromEntries(entries);
  }
  if (indexed.length < entries.length) {
    throw invalid(`Parameters '${path}*' used inconsistently`);
  }
  const byIndex = new Map(indexed.map(([key, value]) => [Number(key), value]));
  return indexed.map((_, index) => {
    const item = byIndex.get(index);
    if (item === undefined) {
      throw invalid(`Parameter '${path}${index}' missing`);
    }
    return item;
  });
}
