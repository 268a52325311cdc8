/** An option's argument: KEY=VALUE text, or JSON when it begins with a brace. */
import { VduseError } from '../../base/errors.js';
import { parseJsonText } from '../../qmp/json-stream.js';
import { type KeyvalSyntax, parseKeyval } from '../../qmp/keyval.js';
import { checkOptions, type Declaration } from '../../qmp/qapi.js';

/** Whether the argument asks what the option takes. */
export function isHelpRequest(text: string, syntax: KeyvalSyntax): boolean {
  return !text.startsWith('{') && /(?:^|,)(?:help|\?)(?:,|$)/.test(text) && parseKeyval(text, syntax).help;
}

/** Throws INVALID_ARGUMENT. */
export function parseOptionArgument<T>(text: string, declaration: Declaration<T>, syntax: KeyvalSyntax): T {
  if (!text.startsWith('{')) {
    return checkOptions(declaration.keyval, parseKeyval(text, syntax).options);
  }
  const message = parseJsonText(text);
  if (message.error !== undefined) {
    throw new VduseError('INVALID_ARGUMENT', message.error);
  }
  return checkOptions(declaration.json, message.value);
}
