/**
 * The answer of query-qmp-schema, made of the schemas that validate (QEMU: qapi/introspect.json, SchemaInfo). Types
 * have numbers for names, as in QEMU: only commands, events and built-in types are an interface.
 */
import type { z } from 'zod';
import type { JsonObject } from './json-value.js';
import { type BuiltinName, memberOf, type QapiShape, shapeOf } from './qapi-shape.js';

export interface CommandSchema {
  readonly name: string;
  readonly arguments: z.ZodType;
  /** Absent: the command returns nothing. */
  readonly returns?: z.ZodType;
}

export interface EventSchema {
  readonly name: string;
  readonly data: z.ZodType;
}

const jsonTypes: Record<BuiltinName, string> = {
  str: 'string',
  int: 'int',
  bool: 'boolean',
  number: 'number',
  any: 'value',
};

export function schemaInfo(commands: readonly CommandSchema[], events: readonly EventSchema[]): JsonObject[] {
  const types = new TypeNames();
  const empty = types.nameOfStruct({});
  const infos: JsonObject[] = commands.map((command) => ({
    name: command.name,
    'meta-type': 'command',
    'arg-type': types.nameOf(command.arguments),
    'ret-type': command.returns === undefined ? empty : types.nameOf(command.returns),
  }));
  for (const event of events) {
    infos.push({ name: event.name, 'meta-type': 'event', 'arg-type': types.nameOf(event.data) });
  }
  return [...infos, ...types.infos];
}

/** Names types as they are met. Types that are alike are one. */
class TypeNames {
  readonly infos: JsonObject[] = [];
  readonly #names = new Map<z.ZodType, string>();
  readonly #namesByContent = new Map<string, string>();
  /** Types whose members are being named, and whether one of these refers to it. */
  readonly #open = new Map<z.ZodType, { readonly name: string; isReferred: boolean }>();
  #next = 0;

  nameOf(type: z.ZodType): string {
    const known = this.#names.get(type);
    if (known !== undefined) {
      return known;
    }
    const open = this.#open.get(type);
    if (open !== undefined) {
      open.isReferred = true;
      return open.name;
    }
    const shape = shapeOf(type);
    if (shape.kind === 'builtin' || shape.kind === 'list') {
      const name = shape.kind === 'builtin' ? this.#builtin(shape.name) : this.#list(shape.element);
      this.#names.set(type, name);
      return name;
    }
    const state = { name: this.#newName(), isReferred: false };
    this.#open.set(type, state);
    const content = this.#content(shape);
    this.#open.delete(type);
    const name = this.#add(content, state.name, state.isReferred);
    this.#names.set(type, name);
    return name;
  }

  nameOfStruct(members: z.ZodRawShape): string {
    return this.#add(this.#struct(members), this.#newName(), false);
  }

  #newName(): string {
    return `${this.#next++}`;
  }

  /** `isFixed`: something refers to the name already. */
  #add(content: JsonObject, name: string, isFixed: boolean): string {
    const key = JSON.stringify(content);
    const same = this.#namesByContent.get(key);
    if (same !== undefined && !isFixed) {
      return same;
    }
    this.#namesByContent.set(key, name);
    this.infos.push({ name, ...content });
    return name;
  }

  #builtin(name: BuiltinName): string {
    return this.#add({ 'meta-type': 'builtin', 'json-type': jsonTypes[name] }, name, false);
  }

  #list(element: z.ZodType): string {
    const elementName = this.nameOf(element);
    return this.#add({ 'meta-type': 'array', 'element-type': elementName }, `[${elementName}]`, false);
  }

  #content(shape: Exclude<QapiShape, { kind: 'builtin' | 'list' }>): JsonObject {
    switch (shape.kind) {
      case 'enum':
        return enumContent(shape.values);
      case 'struct':
        return this.#struct(shape.members);
      case 'alternate':
        return {
          'meta-type': 'alternate',
          members: shape.types().map((type) => ({ type: this.nameOf(type) })),
        };
      case 'variants':
        return this.#variants(shape.discriminator, shape.structs);
    }
  }

  #struct(members: z.ZodRawShape): JsonObject {
    return { 'meta-type': 'object', members: this.#members(Object.entries(members)) };
  }

  /** What all structs have is the object's own, the rest belongs to a case of the discriminator. */
  #variants(discriminator: string, structs: readonly z.ZodRawShape[]): JsonObject {
    const cases = structs.flatMap((struct) => casesOf(struct[discriminator] as z.ZodType));
    const common = Object.keys(structs[0]).filter(
      (name) => name !== discriminator && structs.every((struct) => name in struct),
    );
    const tag = { name: discriminator, type: this.#add(enumContent(cases), this.#newName(), false) };
    const variants = structs.flatMap((struct) => {
      const own = Object.entries(struct).filter(([name]) => name !== discriminator && !common.includes(name));
      const type = this.nameOfStruct(Object.fromEntries(own));
      return casesOf(struct[discriminator] as z.ZodType).map((name) => ({ case: name, type }));
    });
    const members = this.#members(common.map((name) => [name, structs[0][name]]));
    return { 'meta-type': 'object', members: [tag, ...members], tag: discriminator, variants };
  }

  #members(entries: readonly (readonly [string, unknown])[]): JsonObject[] {
    return entries.map(([name, member]) => {
      const { type, isOptional } = memberOf(member as z.ZodType);
      return { name, type: this.nameOf(type), ...(isOptional ? { default: null } : {}) };
    });
  }
}

function casesOf(discriminator: z.ZodType): readonly string[] {
  const shape = shapeOf(discriminator);
  return shape.kind === 'enum' ? shape.values : [];
}

/** `values` is deprecated in QEMU, and what older clients read. */
function enumContent(values: readonly string[]): JsonObject {
  return { 'meta-type': 'enum', members: values.map((name) => ({ name })), values: [...values] };
}
