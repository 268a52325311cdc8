/**
 * JSON tokens out of bytes that arrive in pieces (RFC 8259). Like QEMU's lexer it also takes strings in single
 * quotes, and after a byte that fits nowhere it skips to the next structural or control character, so that a
 * client which sent rubbish can go on. Tokens are pulled one at a time: whoever is slow to answer buffers
 * nothing but the bytes.
 */

export type JsonTokenType = 'structural' | 'string' | 'integer' | 'float' | 'keyword' | 'stray' | 'oversized';

export interface JsonToken {
  readonly type: JsonTokenType;
  /** Valid until the lexer is given more bytes. */
  readonly bytes: Uint8Array;
}

const State = {
  START: 0,
  RECOVERY: 1,
  DOUBLE_QUOTED: 2,
  DOUBLE_QUOTED_ESCAPE: 3,
  SINGLE_QUOTED: 4,
  SINGLE_QUOTED_ESCAPE: 5,
  KEYWORD: 6,
  MINUS: 7,
  ZERO: 8,
  DIGITS: 9,
  POINT: 10,
  FRACTION: 11,
  EXPONENT: 12,
  EXPONENT_SIGN: 13,
  EXPONENT_DIGITS: 14,
} as const;

/** What a byte does other than leading to a state: the token ends with it, ended before it, or it is stray. */
const END = -1;
const END_BEFORE = -2;
const STRAY = -3;

/** Tokens that a byte of theirs ends, by the state before it. */
const closedTokens: Partial<Record<number, JsonTokenType>> = {
  [State.START]: 'structural',
  [State.RECOVERY]: 'structural',
  [State.DOUBLE_QUOTED]: 'string',
  [State.SINGLE_QUOTED]: 'string',
};

/** Tokens that end where something else begins, or nothing more comes. */
const openTokens: Partial<Record<number, JsonTokenType>> = {
  [State.KEYWORD]: 'keyword',
  [State.ZERO]: 'integer',
  [State.DIGITS]: 'integer',
  [State.FRACTION]: 'float',
  [State.EXPONENT_DIGITS]: 'float',
};

const char = (text: string) => text.charCodeAt(0);
const DOUBLE_QUOTE = char('"');
const SINGLE_QUOTE = char("'");
const BACKSLASH = char('\\');
const TAB = char('\t');
const SPACE = char(' ');
/** Bytes that no UTF-8 sequence contains; clients send them to resynchronize. */
const IMPOSSIBLE_UTF8 = 0xfe;

const isDigit = (byte: number) => byte >= 0x30 && byte <= 0x39;
const isLetter = (byte: number) => byte >= 0x61 && byte <= 0x7a;
const isExponent = (byte: number) => byte === char('e') || byte === char('E');
const structural = new Set([...'{}[],:'].map(char));
const whitespace = new Set([...' \t\r\n'].map(char));

function stepFromStart(byte: number): number {
  if (whitespace.has(byte)) {
    return State.START;
  }
  if (structural.has(byte)) {
    return END;
  }
  if (isLetter(byte)) {
    return State.KEYWORD;
  }
  if (isDigit(byte)) {
    return byte === char('0') ? State.ZERO : State.DIGITS;
  }
  switch (byte) {
    case DOUBLE_QUOTE:
      return State.DOUBLE_QUOTED;
    case SINGLE_QUOTE:
      return State.SINGLE_QUOTED;
    case char('-'):
      return State.MINUS;
    default:
      return STRAY;
  }
}

/** In a string: `quote` ends it, a backslash leads to `escape`, control characters do not belong into it. */
function stepInString(byte: number, state: number, quote: number): number {
  if (byte < SPACE || byte >= IMPOSSIBLE_UTF8) {
    return STRAY;
  }
  if (byte === quote) {
    return END;
  }
  return byte === BACKSLASH ? state + 1 : state;
}

function stepInNumber(byte: number, state: number): number {
  switch (state) {
    case State.MINUS:
      return isDigit(byte) ? (byte === char('0') ? State.ZERO : State.DIGITS) : STRAY;
    case State.POINT:
      return isDigit(byte) ? State.FRACTION : STRAY;
    case State.EXPONENT:
      if (byte === char('+') || byte === char('-')) {
        return State.EXPONENT_SIGN;
      }
      return isDigit(byte) ? State.EXPONENT_DIGITS : STRAY;
    case State.EXPONENT_SIGN:
      return isDigit(byte) ? State.EXPONENT_DIGITS : STRAY;
    case State.EXPONENT_DIGITS:
      return isDigit(byte) ? state : END_BEFORE;
    default:
      if (isDigit(byte)) {
        return state === State.ZERO ? STRAY : state;
      }
      if (isExponent(byte)) {
        return State.EXPONENT;
      }
      return byte === char('.') && state !== State.FRACTION ? State.POINT : END_BEFORE;
  }
}

function step(state: number, byte: number): number {
  switch (state) {
    case State.START:
      return stepFromStart(byte);
    case State.RECOVERY: {
      const resumes = (byte < SPACE && byte !== TAB) || byte >= IMPOSSIBLE_UTF8 || structural.has(byte);
      return resumes ? stepFromStart(byte) : State.RECOVERY;
    }
    case State.DOUBLE_QUOTED:
      return stepInString(byte, state, DOUBLE_QUOTE);
    case State.SINGLE_QUOTED:
      return stepInString(byte, state, SINGLE_QUOTE);
    case State.DOUBLE_QUOTED_ESCAPE:
    case State.SINGLE_QUOTED_ESCAPE:
      // Which escapes exist is the parser's business.
      return byte < SPACE || byte >= IMPOSSIBLE_UTF8 ? STRAY : state - 1;
    case State.KEYWORD:
      return isLetter(byte) ? state : END_BEFORE;
    default:
      return stepInNumber(byte, state);
  }
}

export class JsonLexer {
  readonly #tokenBytesMax: number;
  #state: number = State.START;
  #chunk: Uint8Array = new Uint8Array(0);
  #position = 0;
  /** The token's bytes that earlier chunks brought, in one buffer that grows: chunks may be single bytes. */
  #earlier = Buffer.allocUnsafe(256);
  #earlierBytes = 0;
  /** The token exceeded the limit: its bytes are dropped, its end is looked for. */
  #isOversized = false;

  constructor(options: { tokenBytesMax: number }) {
    this.#tokenBytesMax = options.tokenBytesMax;
  }

  /** Takes the next bytes. Every token of the ones before must have been pulled. */
  push(chunk: Uint8Array): void {
    this.#chunk = chunk;
    this.#position = 0;
  }

  /** The next token, or undefined when the bytes so far contain no further whole one. */
  next(): JsonToken | undefined {
    let start = this.#position;
    while (this.#position < this.#chunk.length) {
      const before = this.#state;
      const state = step(before, this.#chunk[this.#position]);
      if (state === END_BEFORE) {
        return this.#take(start, openTokens[before]!);
      }
      this.#position++;
      if (state === END) {
        return this.#take(start, closedTokens[before]!);
      }
      if (state === STRAY) {
        const token = this.#take(start, 'stray');
        this.#state = State.RECOVERY;
        return token;
      }
      this.#state = state;
      if (state === State.START || state === State.RECOVERY) {
        start = this.#position;
      } else if (before === State.START || before === State.RECOVERY) {
        start = this.#position - 1;
      } else if (this.#earlierBytes + this.#position - start > this.#tokenBytesMax) {
        this.#isOversized = true;
        this.#earlierBytes = 0;
        start = this.#position;
      }
    }
    this.#keep(start);
    return undefined;
  }

  /** The token that ends because nothing more comes. */
  flush(): JsonToken | undefined {
    if (this.#state === State.START || this.#state === State.RECOVERY) {
      return undefined;
    }
    return this.#take(this.#position, openTokens[this.#state] ?? 'stray');
  }

  #keep(start: number): void {
    if (this.#state === State.START || this.#state === State.RECOVERY) {
      return;
    }
    const part = this.#chunk.subarray(start, this.#position);
    const wanted = this.#earlierBytes + part.length;
    if (wanted > this.#earlier.length) {
      const larger = Buffer.allocUnsafe(wanted * 2);
      this.#earlier.copy(larger, 0, 0, this.#earlierBytes);
      this.#earlier = larger;
    }
    this.#earlier.set(part, this.#earlierBytes);
    this.#earlierBytes = wanted;
  }

  #take(start: number, type: JsonTokenType): JsonToken {
    const rest = this.#chunk.subarray(start, this.#position);
    const earlier = this.#earlier.subarray(0, this.#earlierBytes);
    if (this.#earlierBytes > 0) {
      // The token owns the buffer now.
      this.#earlier = Buffer.allocUnsafe(256);
      this.#earlierBytes = 0;
    }
    this.#state = State.START;
    if (this.#isOversized) {
      this.#isOversized = false;
      return { type: type === 'stray' ? 'stray' : 'oversized', bytes: rest.subarray(0, 0) };
    }
    return { type, bytes: earlier.length === 0 ? rest : Buffer.concat([earlier, rest]) };
  }
}
