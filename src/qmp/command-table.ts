/** The commands of a QMP server: each has a schema for its arguments and a function. */
import type { z } from 'zod';
import { QmpError } from './errors.js';
import type { JsonObject, JsonValue } from './json-value.js';
import { checkOptions } from './qapi.js';

export class QmpCommandTable {
  readonly #commands = new Map<string, (args: JsonObject) => Promise<JsonValue>>();

  /** A command that tells something. */
  addQuery<T>(name: string, schema: z.ZodType<T>, handler: (args: T) => JsonValue): void {
    this.#commands.set(name, async (args) => handler(checkOptions(schema, args)));
  }

  /** A command that does something; QMP answers it with an empty object. */
  addAction<T>(name: string, schema: z.ZodType<T>, handler: (args: T) => Promise<void> | void): void {
    this.#commands.set(name, async (args) => {
      await handler(checkOptions(schema, args));
      return {};
    });
  }

  get names(): string[] {
    return [...this.#commands.keys()];
  }

  /** Throws CommandNotFound, INVALID_ARGUMENT for wrong arguments, and what the command throws. */
  async execute(name: string, args: JsonObject): Promise<JsonValue> {
    const command = this.#commands.get(name);
    if (command === undefined) {
      throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
    }
    return command(args);
  }
}
