/** What QEMU takes as the name of a node, an export or an object. */
const WELL_FORMED = /^[A-Za-z][A-Za-z0-9\-._]*$/;

export const identifierHint =
  "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.";

export function isIdentifier(text: string): boolean {
  return WELL_FORMED.test(text);
}
