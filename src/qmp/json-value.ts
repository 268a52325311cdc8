/** What JSON can say. Integers beyond 2^53 are BigInts, so that an `id` goes back as it came. */
export type JsonValue = null | boolean | number | bigint | string | JsonValue[] | JsonObject;

export interface JsonObject {
  [key: string]: JsonValue | undefined;
}

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Sets a member of a parsed object. `__proto__` is a key like any other. */
export function setMember<T>(object: Record<string, T>, key: string, value: T): void {
  if (key === '__proto__') {
    Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true });
  } else {
    object[key] = value;
  }
}

export interface JsonFormat {
  /** Spread over lines, for people. */
  readonly pretty?: boolean;
}

/**
 * Writes a value the way QEMU does: ASCII only (QMP specification, "General definitions"), with a blank after
 * commas and colons. Members that are undefined are left out.
 */
export function formatJson(value: JsonValue, format: JsonFormat = {}): string {
  return formatAt(value, format.pretty === true, 0);
}

function formatAt(value: JsonValue, pretty: boolean, depth: number): string {
  if (Array.isArray(value)) {
    const items = value.map((item) => formatAt(item, pretty, depth + 1));
    return formatSequence(items, { open: '[', close: ']', pretty, depth });
  }
  if (isJsonObject(value)) {
    const items: string[] = [];
    for (const [key, member] of Object.entries(value)) {
      if (member !== undefined) {
        items.push(`${formatString(key)}: ${formatAt(member, pretty, depth + 1)}`);
      }
    }
    return formatSequence(items, { open: '{', close: '}', pretty, depth });
  }
  switch (typeof value) {
    case 'string':
      return formatString(value);
    case 'bigint':
      return value.toString();
    default:
      return JSON.stringify(value);
  }
}

function formatSequence(
  items: readonly string[],
  style: { open: string; close: string; pretty: boolean; depth: number },
): string {
  const { open, close, pretty, depth } = style;
  if (!pretty || items.length === 0) {
    return `${open}${items.join(', ')}${close}`;
  }
  const indent = '    '.repeat(depth);
  const lines = items.map((item) => `${indent}    ${item}`);
  return `${open}\n${lines.join(',\n')}\n${indent}${close}`;
}

function formatString(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`,
  );
}
