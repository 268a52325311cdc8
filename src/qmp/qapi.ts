/**
 * Options as QEMU's schema language (QAPI) types them. A set of options is declared once; two schemas come of
 * it: one for JSON, where a number is a number, and one for KEY=VALUE text, where everything is a string and
 * the type decides what it means. Both give the same TypeScript type. Errors are worded as QEMU words them.
 */
import { z } from 'zod';
import { VduseError } from '../base/errors.js';
import { nearest } from './nearest.js';
import { withShape } from './qapi-shape.js';

/** The scalar types a declaration is made of. */
export interface Scalars {
  readonly bool: z.ZodType<boolean>;
  readonly str: z.ZodType<string>;
  readonly uint16: z.ZodType<number>;
  readonly uint32: z.ZodType<number>;
  /** A signed integer, at most 2^53 - 1 either way. */
  readonly int: z.ZodType<number>;
  /** Bytes. As text it may have a suffix: 4k, 10G. */
  readonly size: z.ZodType<number>;
}

export interface Declaration<T> {
  readonly json: z.ZodType<T>;
  readonly keyval: z.ZodType<T>;
}

/** Stands for the member's name in a message: a type does not know where it is used. */
const NAME = '\u0000';
/** The member's own name, without what it is a member of: QEMU's way for words that are not among the choices. */
const OWN_NAME = '\u0001';
const MISSING = `Parameter '${NAME}' is missing`;

type ErrorText = (issue: { readonly input?: unknown; readonly code?: string | undefined }) => string;

/** The error of a JSON value that has the wrong type. */
function expected(type: string): ErrorText {
  return (issue) =>
    issue.input === undefined ? MISSING : `Invalid parameter type for '${NAME}', expected: ${type}`;
}

function jsonInteger(range: { min: number; max: number; name?: string }): z.ZodType<number> {
  const rangeText =
    range.name === undefined
      ? `Invalid parameter type for '${NAME}', expected: integer`
      : `Parameter '${NAME}' expects ${range.name}`;
  return z
    .number({ error: expected('integer') })
    .refine(Number.isSafeInteger, { error: expected('integer'), abort: true })
    .refine((value) => value >= range.min && value <= range.max, { error: rangeText });
}

const int = { kind: 'builtin', name: 'int' } as const;

export const jsonScalars: Scalars = {
  bool: withShape(z.boolean({ error: expected('boolean') }), { kind: 'builtin', name: 'bool' }),
  str: withShape(z.string({ error: expected('string') }), { kind: 'builtin', name: 'str' }),
  uint16: withShape(jsonInteger({ min: 0, max: 0xffff, name: 'uint16_t' }), int),
  uint32: withShape(jsonInteger({ min: 0, max: 0xffff_ffff, name: 'uint32_t' }), int),
  int: withShape(jsonInteger({ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER }), int),
  size: withShape(
    jsonInteger({ min: 0, max: Number.MAX_SAFE_INTEGER, name: 'a non-negative size below 2^53' }),
    int,
  ),
};

/** Any JSON value, which must be there. */
export const anyValue: z.ZodType<unknown> = z
  .unknown()
  .refine((value) => value !== undefined, { error: MISSING });

/** A type that is written as text; `parse` returns undefined when the text is not of it. */
function textual<T>(parse: (text: string) => T | undefined, expectation: string): z.ZodType<T> {
  return z.string({ error: expected('string') }).transform((text, context) => {
    const value = parse(text);
    if (value === undefined) {
      context.addIssue({ code: 'custom', message: `Parameter '${NAME}' expects ${expectation}` });
      return z.NEVER;
    }
    return value;
  });
}

const booleans: ReadonlyMap<string, boolean> = new Map([
  ['on', true],
  ['yes', true],
  ['true', true],
  ['y', true],
  ['off', false],
  ['no', false],
  ['false', false],
  ['n', false],
]);

function parseInteger(text: string): number | undefined {
  if (!/^[+-]?(0x[0-9a-f]+|\d+)$/i.test(text)) {
    return undefined;
  }
  const magnitude = Number(text.replace(/^[+-]/, ''));
  const value = text.startsWith('-') ? -magnitude : magnitude;
  return Number.isSafeInteger(value) ? value : undefined;
}

const sizeSuffixes = ['b', 'k', 'm', 'g', 't', 'p', 'e'];

/** Bytes with QEMU's suffixes, powers of 1024; a fraction such as 1.5G is a whole number of bytes in the end. */
function parseSize(text: string): number | undefined {
  const match = /^(0x[0-9a-f]+|\d+(?:\.\d+)?)([bkmgtpe]?)$/i.exec(text);
  if (match === null || (match[2] === '' && match[1].includes('.'))) {
    return undefined;
  }
  const exponent = match[2] === '' ? 0 : sizeSuffixes.indexOf(match[2].toLowerCase());
  const value = Math.floor(Number(match[1]) * 1024 ** exponent);
  return Number.isSafeInteger(value) ? value : undefined;
}

function textualInteger(range: { min: number; max: number; name?: string }): z.ZodType<number> {
  return textual(parseInteger, 'integer').refine((value) => value >= range.min && value <= range.max, {
    error: `Parameter '${NAME}' expects ${range.name ?? 'integer'}`,
  });
}

const keyvalScalars: Scalars = {
  bool: textual((text) => booleans.get(text), "'on' or 'off'"),
  str: z.string({ error: expected('string') }),
  uint16: textualInteger({ min: 0, max: 0xffff, name: 'uint16_t' }),
  uint32: textualInteger({ min: 0, max: 0xffff_ffff, name: 'uint32_t' }),
  int: textualInteger({ min: -Number.MAX_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER }),
  size: textual(parseSize, 'a non-negative size below 2^53, such as 512, 64k or 1.5G'),
};

/** One of a few words. */
export function choice<const T extends readonly string[]>(...values: T): z.ZodType<T[number]> {
  const schema = z.enum(values, {
    error: (issue) => {
      if (issue.input === undefined) {
        return MISSING;
      }
      return typeof issue.input === 'string'
        ? `Parameter '${OWN_NAME}' does not accept value '${issue.input}'\nsupported: ${values.join(', ')}`
        : `Invalid parameter type for '${NAME}', expected: string`;
    },
  });
  return withShape(schema, { kind: 'enum', values });
}

/** Names that a struct takes, nested ones with dots, for the hint on an unknown one. */
const knownNames = new WeakMap<z.ZodType, readonly string[]>();

function namesOf(shape: z.ZodRawShape): string[] {
  return Object.entries(shape).flatMap(([name, type]) => {
    const inner = type instanceof z.ZodOptional ? (type.unwrap() as z.ZodType) : (type as z.ZodType);
    return knownNames.get(inner)?.map((nested) => `${name}.${nested}`) ?? [name];
  });
}

/** A set of members; any other is an error. */
export function struct<S extends z.ZodRawShape>(shape: S): z.ZodObject<S, z.core.$strict> {
  const known = namesOf(shape);
  const schema = z.strictObject(shape, {
    error: (issue) => {
      if (issue.code !== 'unrecognized_keys') {
        return expected('object')(issue);
      }
      const key = issue.keys[0];
      const near = nearest(key, known);
      const hint = near === undefined ? `known: ${known.join(', ')}` : `did you mean '${NAME}${near}'?`;
      return `Parameter '${NAME}${key}' is unexpected\n${hint}`;
    },
  });
  knownNames.set(schema, known);
  return withShape(schema, { kind: 'struct', members: shape });
}

/** One of several structs; the member that all of them have, a literal each, decides which. */
export function variants<const T extends readonly [StructOf, ...StructOf[]]>(
  discriminator: string,
  structs: T,
): z.ZodType<z.output<T[number]>> {
  const values = structs.map((member) => [...(member.shape[discriminator] as z.ZodLiteral<string>).values]);
  const supported = `supported: ${values.flat().join(', ')}`;
  const schema = z.discriminatedUnion(discriminator, structs as unknown as [StructOf], {
    error: (issue) => {
      const value = isObject(issue.input) ? issue.input[discriminator] : undefined;
      if (value === undefined) {
        const isMissing = isObject(issue.input) || issue.input === undefined;
        return isMissing ? MISSING : `Invalid parameter type for '${NAME}', expected: object`;
      }
      return typeof value === 'string'
        ? `Parameter '${OWN_NAME}' does not accept value '${value}'\n${supported}`
        : `Invalid parameter type for '${NAME}', expected: string`;
    },
  }) as unknown as z.ZodType<z.output<T[number]>>;
  return withShape(schema, {
    kind: 'variants',
    discriminator,
    structs: structs.map((member) => member.shape),
  });
}

/** QAPI's alternate of a name and what the name would stand for; `type` is the alternate's own name. */
export function nameOr<T>(type: string, inner: () => z.ZodType<T>): z.ZodType<string | T> {
  const schema = z.unknown().transform((input, context): string | T => {
    if (typeof input === 'string') {
      return input;
    }
    if (!isObject(input)) {
      context.issues.push({ code: 'custom', message: expected(type)({ input }), input });
      return z.NEVER;
    }
    const result = inner().safeParse(input);
    if (result.success) {
      return result.data;
    }
    for (const issue of result.error.issues) {
      context.issues.push({ ...issue, input } as z.core.$ZodRawIssue);
    }
    return z.NEVER;
  });
  return withShape(schema, { kind: 'alternate', types: () => [jsonScalars.str, inner()] });
}

type StructOf = z.ZodObject<z.ZodRawShape, z.core.$strict>;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** Declares options once, for JSON and for KEY=VALUE text. */
export function declare<S extends z.ZodType>(build: (scalars: Scalars) => S): Declaration<z.output<S>> {
  return {
    json: build(jsonScalars) as z.ZodType<z.output<S>>,
    keyval: build(keyvalScalars) as z.ZodType<z.output<S>>,
  };
}

/** The error that QEMU would have told. */
function describeIssue(issue: z.core.$ZodIssue): VduseError {
  const path = issue.path.reduce<string>(
    (before, part) =>
      typeof part === 'number' ? `${before}[${part}]` : `${before === '' ? '' : `${before}.`}${String(part)}`,
    '',
  );
  const name = issue.code === 'unrecognized_keys' && path !== '' ? `${path}.` : path;
  const [message, hint] = issue.message
    .replaceAll(NAME, () => name)
    .replaceAll(OWN_NAME, () => String(issue.path.at(-1) ?? ''))
    .split('\n');
  return new VduseError('INVALID_ARGUMENT', message, { hint });
}

/** The value of the schema's type. Throws INVALID_ARGUMENT with QEMU's words. */
export function checkOptions<T>(schema: z.ZodType<T>, input: unknown): T {
  const result = schema.safeParse(input);
  if (result.success) {
    return result.data;
  }
  // QEMU tells one error, the first: what is missing or wrong in a struct before what is too much.
  throw describeIssue(result.error.issues[0]);
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> };

/** The object without the members that are undefined, for options where absent and undefined differ. */
export function compact<T extends object>(object: T): Partial<Defined<T>> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as Partial<
    Defined<T>
  >;
}
