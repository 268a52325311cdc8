/**
 * Cuts a byte stream into JSON messages. A message that is not JSON, or exceeds a limit, is an error in its
 * place; what follows it is looked at as if nothing had been before.
 */
import { limits } from '../base/limits.js';
import { JsonLexer, type JsonToken } from './json-lexer.js';
import { JsonSyntaxError, type JsonText, parseTokens } from './json-parser.js';
import type { JsonValue } from './json-value.js';

export type JsonMessage =
  | { readonly value: JsonValue; readonly error?: undefined }
  | { readonly value?: undefined; readonly error: string };

/** Tokens of one message. A message of nothing but brackets would otherwise cost 50 times its size. */
const TOKENS_MAX = 1 << 18;
/** Characters of a stray token that an error repeats. */
const STRAY_TEXT_MAX = 128;

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

export class JsonStream {
  readonly #lexer = new JsonLexer({ tokenBytesMax: limits.qmpMessageBytesMax });
  #tokens: JsonText[] = [];
  #bytes = 0;
  #braces = 0;
  #brackets = 0;
  /** The message exceeded a limit: its error was told, its end is looked for. */
  #discarding = false;

  /** Takes the next bytes. Every message of the ones before must have been pulled. */
  push(chunk: Uint8Array): void {
    this.#lexer.push(chunk);
  }

  /** The next message, or undefined when no further one is complete. */
  next(): JsonMessage | undefined {
    for (let token = this.#lexer.next(); token !== undefined; token = this.#lexer.next()) {
      const message = this.#add(token);
      if (message !== undefined) {
        return message;
      }
    }
    return undefined;
  }

  /** The message that ends because nothing more comes; complete ones have been pulled. */
  flush(): JsonMessage | undefined {
    const token = this.#lexer.flush();
    const message = token === undefined ? undefined : this.#add(token);
    if (message !== undefined || this.#tokens.length === 0) {
      return message;
    }
    return this.#end();
  }

  #add(token: JsonToken): JsonMessage | undefined {
    if (token.type === 'stray') {
      const stray = Buffer.from(token.bytes.subarray(0, STRAY_TEXT_MAX)).toString();
      this.#reset();
      return { error: `JSON parse error, stray '${stray}'` };
    }
    this.#bytes += token.bytes.length;
    const text = decode(token.bytes);
    if (token.type === 'structural') {
      this.#braces += text === '{' ? 1 : text === '}' ? -1 : 0;
      this.#brackets += text === '[' ? 1 : text === ']' ? -1 : 0;
    }
    if (!this.#discarding && token.type !== 'oversized') {
      this.#tokens.push({ type: token.type, text });
    }
    const error = this.#exceededLimit(token);
    const isOpen = this.#braces > 0 || this.#brackets > 0;
    if (isOpen && this.#braces >= 0 && this.#brackets >= 0) {
      return error === undefined ? undefined : { error };
    }
    if (!this.#discarding) {
      return this.#end();
    }
    this.#reset();
    return error === undefined ? undefined : { error };
  }

  /** The limit that the message exceeds with this token. What follows of the message is dropped. */
  #exceededLimit(token: JsonToken): string | undefined {
    if (this.#discarding) {
      return undefined;
    }
    this.#discarding = true;
    if (token.type === 'oversized' || this.#bytes > limits.qmpMessageBytesMax) {
      return 'JSON token size limit exceeded';
    }
    if (this.#tokens.length > TOKENS_MAX) {
      return 'JSON token count limit exceeded';
    }
    if (this.#braces + this.#brackets > limits.jsonDepthMax) {
      return 'JSON nesting depth limit exceeded';
    }
    this.#discarding = false;
    return undefined;
  }

  #end(): JsonMessage {
    const tokens = this.#tokens;
    this.#reset();
    try {
      return { value: parseTokens(tokens) };
    } catch (error) {
      if (error instanceof JsonSyntaxError) {
        return { error: `JSON parse error, ${error.message}` };
      }
      throw error;
    }
  }

  #reset(): void {
    this.#tokens = [];
    this.#bytes = 0;
    this.#braces = 0;
    this.#brackets = 0;
    this.#discarding = false;
  }
}

function decode(bytes: Uint8Array): string | undefined {
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Reads a text that is one JSON value, such as an option's argument. */
export function parseJsonText(text: string): JsonMessage {
  const stream = new JsonStream();
  stream.push(Buffer.from(text));
  const message = stream.next() ?? stream.flush();
  if (message === undefined) {
    return { error: 'Expecting a JSON value' };
  }
  if (message.error === undefined && (stream.next() ?? stream.flush()) !== undefined) {
    return { error: 'Expecting at most one JSON value' };
  }
  return message;
}
