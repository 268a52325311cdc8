/** The data of options that have some ("Option types"). A malformed one is undefined: the client gets an error. */

import { readU16, readU32 } from '../base/nbd-protocol.js';
import { nbdLimits } from './nbd-limits.js';

export interface ExportQuery {
  readonly name: string;
  readonly infos: readonly number[];
}

export interface MetaContextQuery {
  readonly exportName: string;
  readonly queries: readonly string[];
}

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** "Conventions": UTF-8 without NUL, of a bounded length. */
export function decodeString(bytes: Uint8Array): string | undefined {
  if (bytes.length > nbdLimits.stringBytesMax || bytes.includes(0)) {
    return undefined;
  }
  try {
    return decoder.decode(bytes);
  } catch {
    return undefined;
  }
}

/** A string after its length, 32 bits wide. */
function takeString(data: Uint8Array, at: number): { text: string; end: number } | undefined {
  if (data.length - at < 4) {
    return undefined;
  }
  const length = readU32(data, at);
  const start = at + 4;
  if (length > data.length - start) {
    return undefined;
  }
  const text = decodeString(data.subarray(start, start + length));
  return text === undefined ? undefined : { text, end: start + length };
}

/** NBD_OPT_INFO and NBD_OPT_GO. */
export function decodeExportQuery(data: Uint8Array): ExportQuery | undefined {
  const name = takeString(data, 0);
  if (name === undefined || data.length - name.end < 2) {
    return undefined;
  }
  const count = readU16(data, name.end);
  const start = name.end + 2;
  if (data.length - start !== 2 * count) {
    return undefined;
  }
  const infos = Array.from({ length: count }, (_, n) => readU16(data, start + 2 * n));
  return { name: name.text, infos };
}

/** NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. Each query has a namespace and a colon. */
export function decodeMetaContextQuery(data: Uint8Array): MetaContextQuery | undefined {
  const name = takeString(data, 0);
  if (name === undefined || data.length - name.end < 4) {
    return undefined;
  }
  const count = readU32(data, name.end);
  let at = name.end + 4;
  const queries: string[] = [];
  // Each query takes four bytes at least, so the data's length bounds the loop.
  while (queries.length < count) {
    const query = takeString(data, at);
    if (query === undefined || !query.text.includes(':')) {
      return undefined;
    }
    queries.push(query.text);
    at = query.end;
  }
  return at === data.length ? { exportName: name.text, queries } : undefined;
}
