/** What a schema is in QAPI's terms, kept beside the schema that validates, for query-qmp-schema. */
import { z } from 'zod';

export type BuiltinName = 'str' | 'int' | 'bool' | 'number' | 'any';

export type QapiShape =
  | { readonly kind: 'builtin'; readonly name: BuiltinName }
  | { readonly kind: 'enum'; readonly values: readonly string[] }
  | { readonly kind: 'struct'; readonly members: z.ZodRawShape }
  | { readonly kind: 'variants'; readonly discriminator: string; readonly structs: readonly z.ZodRawShape[] }
  | { readonly kind: 'list'; readonly element: z.ZodType }
  /** One of several types that JSON tells apart. A function, for a type may contain itself. */
  | { readonly kind: 'alternate'; readonly types: () => readonly z.ZodType[] };

const shapes = new WeakMap<z.ZodType, QapiShape>();

/** Remembers what a schema is. Returns the schema. */
export function withShape<T extends z.ZodType>(type: T, shape: QapiShape): T {
  shapes.set(type, shape);
  return type;
}

/** What was remembered, or what the schema's own class says. A schema that says nothing takes anything. */
export function shapeOf(type: z.ZodType): QapiShape {
  const known = shapes.get(type);
  if (known !== undefined) {
    return known;
  }
  if (type instanceof z.ZodArray) {
    return { kind: 'list', element: type.element as z.ZodType };
  }
  if (type instanceof z.ZodLiteral) {
    return { kind: 'enum', values: [...type.values].map(String) };
  }
  if (type instanceof z.ZodUnion) {
    const types = type.options as readonly z.ZodType[];
    return { kind: 'alternate', types: () => types };
  }
  return { kind: 'builtin', name: 'any' };
}

/** A member's type without the wrapper that makes it optional. */
export function memberOf(type: z.ZodType): { readonly type: z.ZodType; readonly isOptional: boolean } {
  return type instanceof z.ZodOptional
    ? { type: type.unwrap() as z.ZodType, isOptional: true }
    : { type, isOptional: false };
}
