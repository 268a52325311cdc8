/** A JSON value out of the tokens of one message. Errors are worded as QEMU words them. */
import { assert } from '../base/assert.js';
import { type JsonValue, setMember } from './json-value.js';

/** A token whose bytes were decoded. `text` is undefined when they are not UTF-8. */
export interface JsonText {
  readonly type: 'structural' | 'string' | 'integer' | 'float' | 'keyword';
  readonly text: string | undefined;
}

export class JsonSyntaxError extends Error {
  override readonly name = 'JsonSyntaxError';
}

const INT64_MIN = -(2n ** 63n);
const UINT64_MAX = 2n ** 64n - 1n;

const literals: ReadonlyMap<string | undefined, JsonValue> = new Map<string, JsonValue>([
  ['true', true],
  ['false', false],
  ['null', null],
]);

const escapes: ReadonlyMap<string, string> = new Map([
  ['"', '"'],
  ["'", "'"],
  ['\\', '\\'],
  ['/', '/'],
  ['b', '\b'],
  ['f', '\f'],
  ['n', '\n'],
  ['r', '\r'],
  ['t', '\t'],
]);

/**
 * Throws JsonSyntaxError. `tokens` is not empty, and its nesting is bounded: the stream counted its brackets,
 * so the recursion here ends.
 */
export function parseTokens(tokens: readonly JsonText[]): JsonValue {
  const parser = new Parser(tokens);
  const value = parser.value();
  assert(parser.ended, 'a message ends with its value');
  return value;
}

class Parser {
  readonly #tokens: readonly JsonText[];
  #next = 0;

  constructor(tokens: readonly JsonText[]) {
    this.#tokens = tokens;
  }

  get ended(): boolean {
    return this.#next === this.#tokens.length;
  }

  value(): JsonValue {
    const token = this.#pop();
    switch (token.type) {
      case 'string':
        return parseString(token.text);
      case 'integer':
        return parseInteger(token.text!);
      case 'float':
        return Number(token.text);
      case 'keyword': {
        const literal = literals.get(token.text);
        if (literal === undefined) {
          throw new JsonSyntaxError(`invalid keyword '${token.text}'`);
        }
        return literal;
      }
      case 'structural':
        if (token.text === '{') {
          return this.#object();
        }
        if (token.text === '[') {
          return this.#list();
        }
        throw new JsonSyntaxError('expecting value');
    }
  }

  #object(): JsonValue {
    const object: Record<string, JsonValue> = {};
    if (this.#skip('}')) {
      return object;
    }
    do {
      const key = this.value();
      if (typeof key !== 'string') {
        throw new JsonSyntaxError('key is not a string in object');
      }
      if (!this.#skip(':')) {
        this.#expectMore();
        throw new JsonSyntaxError('missing : in object pair');
      }
      const value = this.value();
      if (Object.hasOwn(object, key)) {
        throw new JsonSyntaxError('duplicate key');
      }
      setMember(object, key, value);
    } while (this.#separator('}', 'dict'));
    return object;
  }

  #list(): JsonValue {
    const list: JsonValue[] = [];
    if (this.#skip(']')) {
      return list;
    }
    do {
      list.push(this.value());
    } while (this.#separator(']', 'list'));
    return list;
  }

  /** Whether another item follows; otherwise the closing bracket did. */
  #separator(close: string, container: string): boolean {
    if (this.#skip(',')) {
      return true;
    }
    if (this.#skip(close)) {
      return false;
    }
    this.#expectMore();
    throw new JsonSyntaxError(`expected separator in ${container}`);
  }

  #skip(structural: string): boolean {
    const token = this.#tokens[this.#next];
    if (token?.type !== 'structural' || token.text !== structural) {
      return false;
    }
    this.#next++;
    return true;
  }

  #pop(): JsonText {
    this.#expectMore();
    return this.#tokens[this.#next++];
  }

  #expectMore(): void {
    if (this.ended) {
      throw new JsonSyntaxError('premature EOI');
    }
  }
}

function parseInteger(text: string): JsonValue {
  const value = Number(text);
  if (Number.isSafeInteger(value)) {
    return value === 0 ? 0 : value;
  }
  const exact = BigInt(text);
  return exact >= INT64_MIN && exact <= UINT64_MAX ? exact : value;
}

/** `quoted` still has its quotes; the lexer made sure of them. */
function parseString(quoted: string | undefined): string {
  if (quoted === undefined) {
    throw new JsonSyntaxError('invalid UTF-8 sequence in string');
  }
  const text = quoted.slice(1, -1);
  if (!text.includes('\\')) {
    return text;
  }
  return text.replace(/\\(?:u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|u(.{0,4})|(.))/gisu, resolveEscape);
}

function resolveEscape(
  all: string,
  high: string | undefined,
  low: string | undefined,
  unit: string | undefined,
  single: string | undefined,
): string {
  if (high !== undefined && low !== undefined) {
    return String.fromCharCode(Number.parseInt(high, 16), Number.parseInt(low, 16));
  }
  if (unit !== undefined) {
    const code = /^[0-9a-f]{4}$/i.test(unit) ? Number.parseInt(unit, 16) : 0xd800;
    if (code >= 0xd800 && code <= 0xdfff) {
      throw new JsonSyntaxError(`${all} is not a valid Unicode character`);
    }
    return String.fromCharCode(code);
  }
  const character = escapes.get(single ?? '');
  if (character === undefined) {
    throw new JsonSyntaxError('invalid escape sequence in string');
  }
  return character;
}
