/** The commands of a QMP server: each has a schema for its arguments and a function. */
import { z } from 'zod';
import { QmpError } from './errors.js';
import { type EventSchema, schemaInfo } from './introspection.js';
import type { JsonObject, JsonValue } from './json-value.js';
import { checkOptions } from './qapi.js';

interface Command {
  readonly arguments: z.ZodType;
  readonly returns?: z.ZodType;
  readonly run: (args: JsonObject) => Promise<JsonValue>;
}

export class QmpCommandTable {
  readonly #commands = new Map<string, Command>();
  readonly #events: EventSchema[] = [];

  /** A command that tells something; `returns` describes it. */
  addQuery<T>(
    name: string,
    schema: z.ZodType<T>,
    handler: (args: T) => Promise<JsonValue> | JsonValue,
    returns: z.ZodType = z.unknown(),
  ): void {
    const run = async (args: JsonObject) => handler(checkOptions(schema, args));
    this.#commands.set(name, { arguments: schema, returns, run });
  }

  /** A command that does something; QMP answers it with an empty object. */
  addAction<T>(name: string, schema: z.ZodType<T>, handler: (args: T) => Promise<void> | void): void {
    const run = async (args: JsonObject) => {
      await handler(checkOptions(schema, args));
      return {};
    };
    this.#commands.set(name, { arguments: schema, run });
  }

  /** An event that clients may get. */
  addEvent(name: string, data: z.ZodType): void {
    this.#events.push({ name, data });
  }

  get names(): string[] {
    return [...this.#commands.keys()];
  }

  /** What there is, as query-qmp-schema tells it. */
  describe(): JsonObject[] {
    const commands = [...this.#commands].map(([name, command]) => ({ name, ...command }));
    return schemaInfo(commands, this.#events);
  }

  /** What a query's answer looks like; undefined for a command that tells nothing. */
  answerSchema(name: string): z.ZodType | undefined {
    return this.#commands.get(name)?.returns;
  }

  /** Throws CommandNotFound, INVALID_ARGUMENT for wrong arguments, and what the command throws. */
  async execute(name: string, args: JsonObject): Promise<JsonValue> {
    const command = this.#commands.get(name);
    if (command === undefined) {
      throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
    }
    return command.run(args);
  }
}
