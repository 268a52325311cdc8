/** QMP's messages as objects (QEMU: docs/interop/qmp-spec): what a client may send, what it gets. */
import { errorMessage, VduseError } from '../base/errors.js';
import { QmpError } from './errors.js';
import { isJsonObject, type JsonObject, type JsonValue } from './json-value.js';

export interface QmpRequest {
  readonly command: string;
  readonly arguments: JsonObject;
}

/** What the greeting and query-version tell. `qemu` is the version of QEMU whose interface is spoken. */
export interface QmpVersion {
  readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number };
  readonly package: string;
}

export interface QmpEvent {
  readonly name: string;
  readonly data: JsonObject;
}

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** The client's `id`, which every answer repeats, also the error on a request that is wrong otherwise. */
export function requestId(message: JsonValue): JsonValue | undefined {
  return isJsonObject(message) ? message['id'] : undefined;
}

/** Throws INVALID_ARGUMENT when the message is no request. */
export function checkRequest(message: JsonValue): QmpRequest {
  if (!isJsonObject(message)) {
    throw invalid('QMP input must be a JSON object');
  }
  for (const key of Object.keys(message)) {
    if (key !== 'execute' && key !== 'arguments' && key !== 'id') {
      throw invalid(`QMP input member '${key}' is unexpected`);
    }
  }
  const { execute, arguments: args = {} } = message;
  if (execute === undefined) {
    throw invalid("QMP input lacks member 'execute'");
  }
  if (typeof execute !== 'string') {
    throw invalid("QMP input member 'execute' must be a string");
  }
  if (!isJsonObject(args)) {
    throw invalid("QMP input member 'arguments' must be an object");
  }
  return { command: execute, arguments: args };
}

export function greeting(version: QmpVersion): JsonObject {
  // Out-of-band execution is not offered: no command here needs it.
  return { QMP: { version: { qemu: { ...version.qemu }, package: version.package }, capabilities: [] } };
}

export function successAnswer(value: JsonValue, id: JsonValue | undefined): JsonObject {
  return { return: value, id };
}

export function errorAnswer(error: unknown, id: JsonValue | undefined): JsonObject {
  const errorClass = error instanceof QmpError ? error.errorClass : 'GenericError';
  return { id, error: { class: errorClass, desc: errorMessage(error) } };
}

export function eventMessage(event: QmpEvent, timeMs: number): JsonObject {
  const seconds = Math.floor(timeMs / 1000);
  return {
    timestamp: { seconds, microseconds: (timeMs - seconds * 1000) * 1000 },
    event: event.name,
    data: event.data,
  };
}
